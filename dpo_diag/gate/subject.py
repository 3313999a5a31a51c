"""What a rule can be about: one entry per subject, in a registry that plugins extend from one file."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpo_diag.errors import DiagError
from dpo_diag.registry import Registry

if TYPE_CHECKING:
    from dpo_diag.gate.judged import JudgedRun
    from dpo_diag.stats import Interval

Rule = Mapping[str, Any]
LIMITS = ("min", "max", "max_drop", "max_rise")
RELATIVE = ("max_drop", "max_rise")
"""Limits on the change since the baseline; the others are limits on the value."""
DECIDE = {
    "significant": "fails where the estimate is beyond the limit and its interval excludes no change (0); a limit "
    "on the value itself, min or max, has no such 0 and is judged as by interval",
    "interval": "fails only where the whole interval is beyond the limit",
    "point": "fails where the estimate is beyond the limit, whatever its interval",
}
"""What a limit does with an interval, for a rule (`decide: point`) or for all of a file; the first is the default.
Where no interval is known the estimate decides, and the reason says so."""


@dataclass(frozen=True)
class Quantity:
    """A number to hold against limits: its value with an interval, and since the baseline its change with one.

    Intervals without bounds mean that none is known: then the number itself decides. `change` is None where there is
    no baseline value.
    """

    value: Interval
    before: float | None = None
    change: Interval | None = None


@dataclass(frozen=True)
class Statement:
    """Something that holds or does not: whether the rule is broken, in words, and the number behind it, if any."""

    broken: bool
    reason: str
    value: float | None = None


class Missing(Exception):
    """What the rule is about is not there; the message says why."""


class Ambiguous(Exception):
    """The rule fits several things of this run: it fails, with `missing: skip` too; the message says what to name."""


@dataclass(frozen=True)
class Subject:
    """One kind of rule, `NAME: ARGUMENT` in the file.

    Attributes:
        argument: what stands after the name, for the documentation: "CODE", "TEXT".
        meaning: one clause: what the rule is about, and when it fails.
        judge: the run and the rule -> a Quantity (held against the limits) or a Statement.
        limits: the limits that go with it; () for a Statement.
        options: further keys -> the values allowed, None for any.
        check: raises DiagError for an argument that cannot be right (the rule, and where it stands); None: any will do.
    """

    argument: str
    meaning: str
    judge: Callable[[JudgedRun, Rule], Quantity | Statement]
    limits: tuple[str, ...] = ()
    options: Mapping[str, tuple[str, ...] | None] | None = None
    check: Callable[[Rule, str], None] | None = None


SUBJECTS: Registry[Subject] = Registry("rule subject", "dpo_diag.gate.subjects")
"""name -> subject."""


def check_number(rule: Rule, key: str, where: str) -> None:
    """Raise DiagError if a rule's key holds no finite number."""
    value = rule[key]
    # A whole number may be too large for a float; NaN compares as nothing.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise DiagError(f"{key} is not a number", where=where, got=repr(value)[:80], usage=True)


def unknown_interval(value: float, n: int = 0) -> Interval:
    """A number whose interval is unknown."""
    from dpo_diag.stats import Interval  # numpy: rules are read without

    return Interval(value, math.nan, math.nan, n, "unknown")


def speaks(outcome: str, reason: str) -> Statement:
    """The statement of a finding: broken if it speaks.

    Raises:
        Missing: it does not apply.
    """
    if outcome == "not_applicable":
        raise Missing(reason)
    return Statement(outcome == "speaks", reason)
