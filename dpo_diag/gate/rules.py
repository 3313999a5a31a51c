"""The rules of a gate: a YAML file, checked before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.gate.subject import SUBJECTS, check_number

COMMON = ("name", "missing")


def describe() -> str:
    """What a rules file may hold, one line a subject: for `dpo-diag gate --help` and the documentation."""
    lines = []
    for name, subject in SUBJECTS.items():
        keys = [*(subject.options or ()), *subject.limits]
        lines.append(f"{name}: {subject.argument}  {subject.meaning}{'; ' if keys else ''}{', '.join(keys)}")
    return "\n".join(lines)


def load_rules(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rules of a YAML file {rules: [...]}, checked.

    Each rule names one subject (`describe`) with its limits (min and max of the value, max_drop and max_rise of its
    change since the baseline), and may say `name` and `missing: skip`.

    Raises:
        DiagError: no such file, no YAML, another shape, an unknown key (with the line's number in the list).
    """
    import yaml

    file = Path(path)
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DiagError("no such rules file", where=file, got=error.strerror, usage=True) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DiagError("the rules file is not YAML", where=file, got=error, usage=True) from error
    rules = document.get("rules") if isinstance(document, dict) else None
    if not isinstance(rules, list) or not rules:
        raise DiagError(
            "the rules file holds no rules", where=file, expected="rules: [{metric: ..., max_drop: ...}]", usage=True
        )
    for number, rule in enumerate(rules, 1):
        _check_rule(rule, f"{file}, rule {number}")
    return rules


def _check_rule(rule: Any, where: str) -> None:
    if not isinstance(rule, dict):
        raise DiagError("a rule is a mapping", where=where, got=type(rule).__name__, usage=True)
    names = [name for name in SUBJECTS if name in rule]
    if len(names) != 1:
        raise DiagError(
            "a rule has one subject", where=where, got=names or "none", expected=f"one of {list(SUBJECTS)}", usage=True
        )
    name, subject = names[0], SUBJECTS[names[0]]
    options: dict[str, tuple[str, ...] | None] = {"missing": ("fail", "skip"), **(subject.options or {})}
    known = {name, *subject.limits, *COMMON, *options}
    unknown = [k for k in rule if k not in known]
    if unknown:
        raise DiagError(
            f"unknown key {unknown[0]!r}", where=where, expected=f"some of {sorted(map(str, known))}", usage=True
        )
    limits = [key for key in subject.limits if key in rule]
    if subject.limits and not limits:
        raise DiagError("a rule without a limit", where=where, expected=f"one of {subject.limits}", usage=True)
    for key in limits:
        check_number(rule, key, where)
    for key, allowed in options.items():
        if allowed and key in rule and rule[key] not in allowed:
            raise DiagError(f"{key} is {' or '.join(allowed)}", where=where, got=rule[key], usage=True)
    if subject.check is not None:
        subject.check(rule, where)
