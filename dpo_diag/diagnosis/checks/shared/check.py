"""What a check is, and what it may answer: speaks, silent, or not applicable with the reason.

"Cannot tell" is a not-applicable answer of its own: the data are there, but the effect lies inside its noise. No check
calls anything harmful: likelihoods alone cannot (DESIGN section 2, the counter-view); the verdict does, from scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_diag.diagnosis.checks.shared.advice import Advice, Situation, advice
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.pair_intervals import counted_about
from dpo_diag.registry import Registry
from dpo_diag.stats import TOO_FEW, Interval
from dpo_diag.text import about, interval, plain, plural
from dpo_diag.thresholds import Thresholds

if TYPE_CHECKING:
    from dpo_diag.diagnosis.checks.shared.context import CheckContext

OUTCOMES = ("speaks", "silent", "not_applicable")
SEVERITIES = ("info", "warning", "error")
LISTED = 50
"""Steps, pairs or lines that a list in the evidence holds at most."""
WORST = 5
"""Pairs that are named as the worst ones."""


class Missing(Exception):
    """A quantity that this run does not hold; its text is the reason that the user reads."""


@dataclass(frozen=True)
class Outcome:
    """A check's answer; `severity` and `try_next` override the check's where the evidence asks for it."""

    outcome: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    severity: str | None = None
    try_next: tuple[str, ...] | None = None


def speaks(reason: str, severity: str | None = None, **evidence: Any) -> Outcome:
    """The check found what it looks for."""
    return Outcome("speaks", reason, evidence, severity)


def silent(reason: str, **evidence: Any) -> Outcome:
    """The check looked and found nothing."""
    return Outcome("silent", reason, evidence)


def cannot_tell(reason: str, **evidence: Any) -> Outcome:
    """The data are there, but the effect is inside its noise or has two readings."""
    return Outcome("not_applicable", f"cannot tell: {reason}", evidence)


@dataclass(frozen=True)
class Check:
    """Everything about one check; the table, `dpo-diag checks` and docs/checks/ are made from it.

    Attributes:
        code: DVGnnn, or another prefix for a plugin's.
        title: what it finds, a noun phrase.
        says: one paragraph: when it speaks.
        why: one paragraph: why that matters.
        needs: the records it reads, in the user's words.
        severity: info | warning | error when it speaks.
        evidence: key in a finding's `evidence` -> meaning and unit.
        false_alarms: when it speaks although nothing is wrong, and what to look at then.
        bad, good: runs that make it speak and leave it silent; they are its test and stand on its page.
        try_next: what to do when it speaks: `Advice` with its conditions, or a text that asks for sound numbers only.
        sources: papers or threads it rests on.
        since: first version that has it.
        function: (context, thresholds) -> Outcome; raises Missing where the run lacks what it needs.
        reads: names of the thresholds in conf/checks/default.yaml that decide it.
        thresholds: thresholds that stand in no file, name -> default: those a plugin's check brings along.
    """

    code: str
    title: str
    says: str
    why: str
    needs: str
    severity: str
    evidence: Mapping[str, str]
    false_alarms: tuple[str, ...]
    bad: Example
    good: Example
    try_next: tuple[str | Advice, ...]
    sources: tuple[str, ...]
    since: str
    function: Callable[[CheckContext, Thresholds], Outcome]
    reads: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def run(self, context: CheckContext, thresholds: Thresholds) -> dict[str, Any]:
        """The finding, with the keys of `dpo-diag explain --json` (DESIGN section 6), in strict JSON types; `try` holds
        what the outcome itself brings, the check's own lines come when the whole run is known (`advise`)."""
        context.logged.refused.clear()
        try:
            # Logs hold infinities and numbers like 1e300; what overflows becomes NaN, which speaks for no effect.
            with np.errstate(all="ignore"):
                result = self.function(context, {**self.thresholds, **thresholds})
        except Missing as missing:
            refused = ", ".join(sorted(context.logged.refused))
            because = f" (what {refused} logs is implausible, see DVG028)" if refused else ""
            result = Outcome("not_applicable", f"{missing}{because}")
        return {
            "code": self.code,
            "title": self.title,
            "outcome": result.outcome,
            "reason": result.reason,
            "severity": result.severity or self.severity,
            "evidence": plain(_without_intervals(result.evidence)),
            "try": list(result.try_next or ()) if result.outcome == "speaks" else [],
            "sources": list(self.sources),
        }

    @property
    def advice(self) -> list[Advice]:
        """`try_next`, each line with its conditions."""
        return [advice(line) for line in self.try_next]

    def advise(self, situation: Situation, thresholds: Thresholds, brought: Sequence[str] = ()) -> list[str]:
        """The lines of advice that may be given in this situation; `brought`: lines that stand for the check's own."""
        lines = [advice(line) for line in brought] or self.advice
        return [line.text for line in lines if line.given(situation, thresholds)]


CHECKS: Registry[Check] = Registry("check", "dpo_diag.diagnosis.checks")
"""code -> check, in the order in which they were imported."""


def _without_intervals(value: Any) -> Any:
    """Intervals as the mappings that a finding holds: value, low, high, n, level, the prompts that n pairs share."""
    if isinstance(value, Interval):
        clusters = {"prompts": value.clusters} if value.clusters else {}
        level = {} if math.isnan(value.level) else {"level": value.level}
        low, high = (value.low, value.high) if value.low < value.high or level else (None, None)  # exact: no interval
        return {"value": value.value, "low": low, "high": high, "n": value.n, **level, **clusters}
    if isinstance(value, Mapping):
        return {key: _without_intervals(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_intervals(inner) for inner in value]
    return value


def inside_noise(change: Interval, p: float | None = None, units: str = "pairs") -> str:
    """ "(99 % interval -0.2 to +0.1): inside its noise; about 480 pairs would tell it from none (power 80 %)".

    Args:
        p: of the change, corrected for the steps that its start was chosen from, where it was.
        units: what n counts, "" where no number of units would tell.
    """
    if change.bounds is None:
        shared = f" of {plural(change.clusters, 'prompt')}" if change.clusters else ""
        return f"(n = {change.n}{shared}: {TOO_FEW})"
    of_best = f", p = {p:.2g} corrected for the choice of its start" if p is not None else ""
    more = would_tell(change, units) if units else ""
    return f"({interval(change.bounds, change.level)}{of_best}): inside its noise{more}"


def would_tell(change: Interval, units: str = "pairs") -> str:
    """ "; about 480 pairs would tell it from none (power 80 %)"; "" where no number follows from the interval."""
    needed = None if change.above or change.below else change.needed(change.value)
    if not needed:
        return ""
    enough = max(needed, change.n + 1)
    more = counted_about(enough, change) if units == "pairs" else f"{about(enough)} {units}"
    return f"; about {more} would tell it from none (power 80 %)"


def ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator; NaN where the denominator is 0 or either is not finite."""
    if denominator == 0 or not (np.isfinite(numerator) and np.isfinite(denominator)):
        return float("nan")
    return numerator / denominator
