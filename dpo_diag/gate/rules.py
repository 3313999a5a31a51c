"""The rules of a gate: a YAML file, checked before anything is measured."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError

LIMITS = ("min", "max", "max_drop", "max_rise")
SUBJECTS: dict[str, tuple[str, ...]] = {
    "metric": LIMITS,
    "tag": LIMITS,
    "phrase": ("max", "max_rise"),
    "phrases": (),
    "finding": (),
    "gaming": (),
    "behaviour": (),
    "review": ("min", "max"),
}
"""What a rule can look at -> the limits that go with it."""
COMMON = ("name", "split", "missing", "of")


def load_rules(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rules of a YAML file {rules: [...]}, checked.

    Each rule names one subject and its limits:

    - `metric: NAME` (history, e.g. score/execution_accuracy, ce/chosen), `split`; min, max, max_drop, max_rise
    - `tag: NAME` (mean score of the prompts with that tag; `of: gap` for its gap to the rest); the same limits
    - `phrase: TEXT` (share of answers that hold it); max, max_rise
    - `phrases: N` (at most so many significantly inflated phrases)
    - `finding: CODE` (a check of `explain`; fails if it speaks)
    - `gaming: NAME` (length_bias, format_gaming, strategy_collapse, sycophancy; fails if it speaks)
    - `behaviour: NAME` (fails if it moved away from what is wanted)
    - `review: win_rate` (of the last step that people judged, by item, ties half; `dpo-diag review`); min, max

    and may say `name` and `missing: skip`.

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
        raise DiagError("the rules file is no YAML", where=file, got=error, usage=True) from error
    rules = document.get("rules") if isinstance(document, dict) else None
    if not isinstance(rules, list) or not rules:
        raise DiagError("the rules file holds no rules", where=file, expected="rules: [{metric: ..., max_drop: ...}]", usage=True)  # fmt: skip # noqa: E501
    for number, rule in enumerate(rules, 1):
        _check_rule(rule, f"{file}, rule {number}")
    return rules


def _check_rule(rule: Any, where: str) -> None:
    if not isinstance(rule, dict):
        raise DiagError("a rule is a mapping", where=where, got=type(rule).__name__, usage=True)
    subjects = [s for s in SUBJECTS if s in rule]
    if len(subjects) != 1:
        raise DiagError(
            "a rule has one subject",
            where=where,
            got=subjects or "none",
            expected=f"one of {list(SUBJECTS)}",
            usage=True,
        )
    subject = subjects[0]
    known = {subject, *SUBJECTS[subject], *COMMON}
    unknown = [k for k in rule if k not in known]
    if unknown:
        raise DiagError(
            f"unknown key {unknown[0]!r}", where=where, expected=f"some of {sorted(map(str, known))}", usage=True
        )
    limits = [k for k in SUBJECTS[subject] if k in rule]
    if SUBJECTS[subject] and not limits:
        raise DiagError("a rule without a limit", where=where, expected=f"one of {SUBJECTS[subject]}", usage=True)
    numeric = [*limits, *(["phrases"] if subject == "phrases" else [])]
    for key in numeric:
        if isinstance(rule[key], bool) or not isinstance(rule[key], (int, float)) or not math.isfinite(rule[key]):
            raise DiagError(f"{key} is no number", where=where, got=repr(rule[key]), usage=True)
    if subject == "review" and rule["review"] != "win_rate":
        raise DiagError("a review has one number", where=where, got=rule["review"], expected="win_rate", usage=True)
    if rule.get("missing", "fail") not in ("fail", "skip"):
        raise DiagError("missing is fail or skip", where=where, got=rule["missing"], usage=True)
    if rule.get("of", "score") not in ("score", "gap"):
        raise DiagError("of is score or gap", where=where, got=rule["of"], usage=True)
