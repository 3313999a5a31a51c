"""The thresholds of every check, guard and comparison: conf/checks/default.yaml names, sets and justifies each.

Names are those of the command line: `displacement_min_nats`, or with dots where the file nests them
(`verdict.least_harm`). Override on the command line (`dpo-diag explain RUN verdict.least_harm=0.01`) or in a
configuration (`dpo-train checks.verdict.least_harm=0.01`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from dpo_diag.config import conf_dir
from dpo_diag.documents import parse_yaml
from dpo_diag.errors import DiagError, did_you_mean

Thresholds = Mapping[str, float]


@lru_cache(maxsize=1)
def defaults() -> Thresholds:
    """Every threshold by its dotted name, read only."""
    file = conf_dir() / "checks" / "default.yaml"
    content = parse_yaml(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise DiagError("not a mapping of names to numbers", where=file, hint="restore it from the package")
    return MappingProxyType({name: float(value) for name, value in _flat(content).items()})


def load_thresholds(overrides: Mapping[str, Any] | None = None, extra: Mapping[str, float] | None = None) -> Thresholds:
    """The defaults with `overrides` on top, read only.

    Args:
        overrides: by dotted name, or nested as a composed configuration holds them.
        extra: thresholds that stand in no file: those that a plugin's check brings along.

    Raises:
        DiagError: an override names no threshold (the nearest name is offered) or is not a number.
    """
    values = {**defaults(), **(extra or {})}
    for name, value in _flat(overrides or {}).items():
        if name not in values:
            guess, some = did_you_mean(name, values), f"{len(values)} names, such as {min(values)}"
            raise DiagError(
                "unknown threshold", where="checks", got=name,
                expected=None if guess else f"one of {some}: dpo-diag checks CODE", hint=guess, usage=True,
            )  # fmt: skip
        try:
            values[name] = float(value)
        except (TypeError, ValueError) as error:
            raise DiagError("a threshold is a number", where=f"checks.{name}", got=value, usage=True) from error
    return MappingProxyType(values)


def parse_threshold(text: str) -> tuple[str, float]:
    """NAME=NUMBER of a command line.

    Raises:
        DiagError: it is not of that form.
    """
    name, separator, value = text.partition("=")
    try:
        if not separator or not name:
            raise ValueError
        return name, float(value)
    except ValueError as error:
        raise DiagError("not a threshold", got=text, expected="NAME=NUMBER", usage=True) from error


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined with dots."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
