"""Hydra overrides that name nothing: found before composing, with the nearest valid key or option."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException

from dpo_diag.commands.schema_keys import keys_below
from dpo_diag.config import Config, conf_dir
from dpo_diag.errors import DiagError, did_you_mean
from dpo_diag.thresholds import defaults

_MODES = {
    **dict.fromkeys(("-m", "--multirun"), "--multirun"), **dict.fromkeys(("-r", "--run"), "--run"),
    **dict.fromkeys(("-c", "--cfg"), "--cfg"), **dict.fromkeys(("-i", "--info"), "--info"),
}  # fmt: skip
"""Hydra's flags that say what is done, of which it takes one."""
_SHELLS = '"$`\\!'
"""What a shell reads inside double quotes."""


def valid_keys(schema: type = Config) -> dict[str, list[str]]:
    """Dotted prefix -> keys below it, from the schema; prefixes whose keys are free are absent."""
    keys = keys_below(schema)
    keys[""] += [p.name for p in conf_dir().iterdir() if p.is_dir()] + ["hydra"]
    return keys


@lru_cache(maxsize=64)
def _parsed(text: str) -> Override | None:
    """An override as Hydra reads it, once: its parser takes 13 µs a character, and a word may have 128 KiB of them."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def plain_value(text: str) -> str:
    """The value of an override KEY=VALUE whose value is one text: quotes and escapes taken off, anything else as it is.

    >>> plain_value("resume='läufe/β'"), plain_value("resume=läufe/β"), plain_value("resume=a,b")
    ('läufe/β', 'läufe/β', 'a,b')
    """
    raw = text.partition("=")[2]
    override = _parsed(text)
    value = None if override is None or override.is_sweep_override() else override.value()
    if not isinstance(value, str):
        return raw
    return re.sub(r"(?<!\\)(\\*)\\\$\{", lambda m: m[1][: len(m[1]) // 2] + "${", value)  # as OmegaConf reads it


def refuse_two_modes(arguments: Iterable[str]) -> None:
    """Raise a DiagError where two of Hydra's flags ask for two things: Hydra itself ends in a traceback."""
    asked = sorted({_MODES[flag] for text in arguments if (flag := text.partition("=")[0]) in _MODES})
    if len(asked) > 1:
        hint = "without --multirun one job's configuration is shown" if {"--cfg", "--multirun"} <= {*asked} else None
        raise DiagError(
            "two things are asked at once", got=" ".join(asked), expected="one of them", hint=hint, usage=True
        )


def quoted_paths(arguments: list[str]) -> list[str]:
    """Several data files in one override as Hydra takes them outside a sweep: `data.path=a,b` in quotes."""
    if any(_MODES.get(a) == "--multirun" for a in arguments):
        return arguments
    return [_as_one(a) if a.startswith(("data.path=", "data.eval_path=")) else a for a in arguments]


def _as_one(text: str) -> str:
    key, _, value = text.partition("=")
    return f"{key}={quoted(value)}" if "," in value and value[:1] not in ("[", "'", '"') else text


def explain_override(overrides: Iterable[str], schema: type = Config) -> str | None:
    """The first override that names an unknown key, group or option, with its nearest valid one; None if all exist."""
    keys = valid_keys(schema)
    return next((reason for text in overrides if (reason := _explain(text, keys)) is not None), None)


def _explain(text: str, keys: dict[str, list[str]]) -> str | None:
    parsed = _parsed(text)
    if parsed is None:
        return f"override {text!r} cannot be parsed; expected key=value; hint: {_quoting(text)}"
    key = str(parsed.key_or_group or "")
    if key.startswith("hydra") or parsed.is_add() or not key:
        return None
    group = conf_dir() / key
    if "." not in key and os.path.isdir(group):
        options = [p.stem for p in group.glob("*.yaml")]
        wrong = [value for value in _options(parsed.value(), options) if value not in (*options, "null", "")]
        return f"{key} has no option {wrong[0]!r}; {_nearest(wrong[0], options)}" if wrong else None
    prefix, _, name = key.rpartition(".")
    if prefix in keys:
        within = f"{prefix}." if prefix else ""
        if name in keys[prefix]:
            return None
        below = [f"{at}.{name}" for at, names in keys.items() if at and name in names] if not prefix else []
        return f"unknown key {key!r}; {_meant(text, below) or _nearest(name, keys[prefix], within)}"
    first = prefix.split(".")[0]
    return None if first in keys[""] else f"unknown key {key!r}; {_nearest(first, keys[''])}"


def could_not_override(said: str) -> str | None:
    """What Hydra says of a key that nothing composed has, in our words; None for anything else that it says.

    >>> could_not_override("Could not override 'guards.actions.loss_spike'.\\nTo append to your config use +a=b")
    'guards.actions.loss_spike is not set so far; hint: a new key below guards.actions is added as +a=b'
    """
    found = re.match(r"Could not override '([^']+)'\.\s+To append to your config use (\+\S.*)", said)
    if found is None:
        return None
    key, prefix = found[1], found[1].rpartition(".")[0]
    if key.startswith("checks."):
        return f"unknown key {key!r}; {_nearest(key.removeprefix('checks.'), list(defaults()), 'checks.')}"
    above, _, free = prefix.rpartition(".")
    if free in keys_below(Config).get(above, []):
        return f"{key} is not set so far; hint: a new key below {prefix} is added as {found[2].strip()}"
    return f"unknown key {key!r}; hint: --help lists the keys"


def _meant(text: str, below: list[str]) -> str:
    """What is said of a key that stands below others; a group's option brings more than its name alone."""
    _, _, value = text.partition("=")
    groups = [at.split(".")[0] for at in below if (conf_dir() / at.split(".")[0] / f"{value}.yaml").is_file()]
    if len(groups) == 1:
        return f"hint: {groups[0]}={value}"
    return f"did you mean {', '.join(below[:3])}?" if below else ""


def not_an_override(text: str) -> str:
    """What is said of a word that Hydra cannot read; to the folder of a run, the key that takes it."""
    run = "=" not in text and (Path(text) / "run.json").is_file()
    hint = f"; hint: {shlex.quote(f'resume={text}')} goes on with that run" if run else ""
    return f"override {text!r} cannot be parsed; expected key=value{hint}"


def _options(value: Any, known: list[str]) -> list[str]:
    """The options of a group that an override's value names, a sweep's too: `a`, `a,b`, `choice(a,b)`, `glob(a*)`."""
    if isinstance(value, Glob):
        return list(value.filter(known)) or [f"glob({','.join(value.include)})"]
    if isinstance(value, (ChoiceSweep, list)):
        parts = value.list if isinstance(value, ChoiceSweep) else value
        return [name for part in parts for name in _options(part, known)]
    if isinstance(value, Sweep):
        return ["a range of numbers"]
    return ["null" if value is None else value.text if isinstance(value, QuotedString) else str(value)]


def quoted(value: str) -> str:
    """A text as an override's value, whatever it holds: letters beyond ASCII, spaces, commas, =, quotes.

    >>> quoted("läufe/a, b"), quoted("it's")
    ("'läufe/a, b'", "'it\\\\'s'")
    """
    return QuotedString(value, Quote.single).with_quotes()


def _quoting(text: str) -> str:
    """What to type for an override that Hydra cannot read."""
    key, found, value = text.partition("=")
    why = "a value with letters beyond ASCII, a comma, =, a quote or brackets stands in quotes"
    if not found or value[:1] in "'\"":
        return why
    fixed = f"{key}={quoted(value)}"
    typed = shlex.quote(fixed) if set(fixed) & set(_SHELLS) else f'"{fixed}"'
    return f"{why}: {typed}"


def _nearest(word: str, choices: list[str], within: str = "") -> str:
    return did_you_mean(word, choices, within) or f"valid: {', '.join(sorted(set(choices)))}"
