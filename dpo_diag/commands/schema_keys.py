"""The keys of a configuration's schema, by the dotted prefix that they stand below; Hydra is not needed for it."""

from __future__ import annotations

import dataclasses


def keys_below(schema: type, prefix: str = "") -> dict[str, list[str]]:
    """Dotted prefix -> the names below it, those of nested schemas included (they are prefixes themselves)."""
    keys: dict[str, list[str]] = {prefix: []}
    for f in dataclasses.fields(schema):
        keys[prefix].append(f.name)
        default = f.default_factory() if callable(f.default_factory) else None
        if dataclasses.is_dataclass(default):
            keys |= keys_below(type(default), f"{prefix}.{f.name}" if prefix else f.name)
    return keys
