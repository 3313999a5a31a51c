"""docs/reference/configuration.md: every key of the Hydra apps with type and default, every option of every group."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

from docs.make.markdown import code, head, joined, table
from dpo_diag.config import Config, conf_dir
from dpo_diag.config_checkpoints import GenerateConfig, ScoreConfig

_ABOUT = """
`dpo-train`, `dpo-score` and `dpo-generate` are [Hydra](https://hydra.cc) apps: `KEY=VALUE` sets a key, `GROUP=OPTION`
chooses a file of `conf/GROUP/`, `-m` runs every combination of values joined by commas, `--cfg job` prints the composed
configuration and runs nothing. A misspelt key or a wrong type stops before anything is loaded, with the nearest key
that exists. What has no key here reaches TRL's own configuration as `+trainer.args.NAME=VALUE`.

The defaults below are those of the classes; a group's file sets others where it says so. Thresholds are keys too
(`checks.NAME=VALUE`); they stand, each with its reason, in `conf/checks/default.yaml` and on the
[page of the check](../checks/index.md) that reads them.
"""
APPS = {"dpo-train": Config, "dpo-score": ScoreConfig, "dpo-generate": GenerateConfig}
"""Command -> its schema."""


def page() -> str:
    """The page in Markdown."""
    parts = [head("Configuration of dpo-train, dpo-score, dpo-generate", "conf/ and dpo_diag/config*.py"), _ABOUT]
    parts += ["## Groups", table(("group", "option", "what"), _options())]
    shown: set[type] = set()
    for command, schema in APPS.items():
        parts += [f"## {command}", _about(schema), table(("key", "type", "default"), _keys(schema, ""))]
        for field in dataclasses.fields(schema):
            kind = _record(field)
            if kind is not None and kind not in shown:
                shown.add(kind)
                parts += [f"### {field.name}", _about(kind)]
                parts.append(table(("key", "type", "default"), _keys(kind, f"{field.name}.")))
    return joined(*parts)


def _options() -> Iterator[tuple[str, str, str]]:
    for folder in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        for file in sorted(folder.glob("*.yaml")):
            yield code(folder.name), code(file.stem), _first_comment(file)


def _first_comment(file: Path) -> str:
    lines = [line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    return next(line for line in lines if not line.startswith("@package"))


def _keys(schema: type, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Keys that hold values; a group of keys has a section of its own, one below a group stands with it."""
    for field in dataclasses.fields(schema):
        kind = _record(field)
        if kind is None:
            type_ = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
            yield code(f"{prefix}{field.name}"), code(type_), code(_default(field))
        elif prefix:
            yield from _keys(kind, f"{prefix}{field.name}.")


def _record(field: dataclasses.Field[object]) -> type | None:
    factory = field.default_factory
    return factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None


def _default(field: dataclasses.Field[object]) -> str:
    made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if made is None or isinstance(made, bool):
        return "null" if made is None else str(made).lower()
    return str(list(made) if isinstance(made, tuple) else made)


def _about(kind: type) -> str:
    """The class's docstring, its attributes as a list."""
    text = inspect.getdoc(kind) or ""
    about, _, rest = text.partition("\nAttributes:\n")
    attributes = inspect.cleandoc(rest.partition("\nRaises:")[0])
    joined: list[str] = []
    for line in attributes.splitlines():
        if line.startswith(" ") and joined:
            joined[-1] += " " + line.strip()
        elif line.strip():
            names, _, meaning = line.partition(": ")
            joined.append(f"- `{'`, `'.join(names.split(', '))}`: {meaning}")
    return "\n".join([about.partition("\nRaises:")[0].strip(), "", *joined, ""])
