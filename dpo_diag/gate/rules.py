"""The rules of a gate: a YAML file, checked before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dpo_diag.documents import read_yaml
from dpo_diag.errors import DiagError
from dpo_diag.gate.subject import DECIDE, SUBJECTS, Subject, check_number

COMMON = ("name", "missing")


def describe() -> str:
    """What a rules file may hold, one line a subject, then how a limit decides."""
    lines = []
    for name, subject in SUBJECTS.items():
        keys = [*(subject.options or ()), *subject.limits]
        lines.append(f"{name}: {subject.argument}  {subject.meaning}{'; ' if keys else ''}{', '.join(keys)}")
    lines += ["", "decide, of a rule with a limit or of the whole file: what the limit does with an interval"]
    default = next(iter(DECIDE))
    lines += [f"  {name}{' (default)' if name == default else ''}: {meaning}" for name, meaning in DECIDE.items()]
    lines.append("  Where no interval is known the estimate decides.")
    return "\n".join(lines)


def load_rules(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rules of a YAML file {rules: [...], decide: ...}, checked; the file's `decide` is that of every rule with a
    limit that names none.

    Each rule names one subject (`describe`) with its limits (min and max of the value, max_drop and max_rise of its
    change since the baseline), and may say `name`, `missing: skip` and `decide` (`DECIDE`).

    Raises:
        DiagError: no such file, no YAML, another shape, an unknown key (with the line's number in the list).
    """

    file = Path(path)
    document = dict(read_yaml(file, "the rules file", usage=True))
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules:
        raise DiagError(
            "the rules file holds no rules", where=file, expected="rules: [{metric: ..., max_drop: ...}]", usage=True
        )
    unknown = [key for key in document if key not in ("rules", "decide")]
    if unknown:
        raise DiagError(f"unknown key {unknown[0]!r}", where=file, expected="rules and decide", usage=True)
    _check_options(document, {"decide": tuple(DECIDE)}, str(file))
    checked = []
    for number, rule in enumerate(rules, 1):
        subject = _check_rule(rule, f"{file}, rule {number}")
        of_file = {"decide": document["decide"]} if "decide" in document and subject.limits else {}
        checked.append({**of_file, **rule})
    return checked


def _check_options(given: dict[str, Any], options: dict[str, tuple[str, ...] | None], where: str) -> None:
    for key, allowed in options.items():
        if allowed and key in given and given[key] not in allowed:
            raise DiagError(f"{key} is {' or '.join(allowed)}", where=where, got=given[key], usage=True)


def _check_rule(rule: Any, where: str) -> Subject:
    """The rule's subject."""
    if not isinstance(rule, dict):
        raise DiagError("a rule is a mapping", where=where, got=type(rule).__name__, usage=True)
    names = [name for name in SUBJECTS if name in rule]
    if len(names) != 1:
        raise DiagError(
            "a rule has one subject", where=where, got=names or "none", expected=f"one of {list(SUBJECTS)}", usage=True
        )
    name, subject = names[0], SUBJECTS[names[0]]
    options: dict[str, tuple[str, ...] | None] = {"missing": ("fail", "skip"), **(subject.options or {})}
    if subject.limits:
        options["decide"] = tuple(DECIDE)
    known = {name, *subject.limits, *COMMON, *options}
    unknown = [k for k in rule if k not in known]
    if unknown:
        raise DiagError(
            f"unknown key {unknown[0]!r}", where=where, expected=f"some of {sorted(map(str, known))}", usage=True
        )
    for key, value in rule.items():
        if not isinstance(value, (str, int, float)):
            got = type(value).__name__
            raise DiagError(f"{key} is no text or number", where=where, got=got, hint=f"{key}: TEXT", usage=True)
    limits = [key for key in subject.limits if key in rule]
    if subject.limits and not limits:
        raise DiagError("a rule without a limit", where=where, expected=f"one of {subject.limits}", usage=True)
    for key in limits:
        check_number(rule, key, where)
    _check_options(rule, options, where)
    if subject.check is not None:
        subject.check(rule, where)
    return subject
