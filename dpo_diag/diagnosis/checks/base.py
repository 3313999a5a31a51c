"""What a check is, and what it may answer: speaks, silent, or not applicable with the reason.

"Cannot tell" is a not-applicable outcome of its own: the data are there, but the effect lies inside its noise. No check
calls anything harmful: likelihoods alone cannot (DESIGN section 2, the counter-view); the verdict does, from scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_diag import stats

if TYPE_CHECKING:
    from dpo_diag.diagnosis.checks.context import CheckContext

Thresholds = Mapping[str, float]

OUTCOMES = ("speaks", "silent", "not_applicable")
SEVERITIES = ("info", "warning", "error")


class Missing(Exception):
    """A quantity that this run does not hold; its text is the reason, told to the user."""


@dataclass(frozen=True)
class Outcome:
    """A check's answer; `severity` overrides the table's where the evidence asks for it."""

    outcome: str
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    severity: str | None = None


def speaks(reason: str, severity: str | None = None, **evidence: Any) -> Outcome:
    return Outcome("speaks", reason, evidence, severity)


def silent(reason: str, **evidence: Any) -> Outcome:
    return Outcome("silent", reason, evidence)


def cannot_tell(reason: str, **evidence: Any) -> Outcome:
    """The data are there, the effect is inside its noise or has two readings."""
    return Outcome("not_applicable", f"cannot tell: {reason}", evidence)


@dataclass(frozen=True)
class Check:
    """One row of the table of checks.

    Attributes:
        code: DVGnnn.
        title: what it finds, a noun phrase.
        needs: what it reads, in the user's words.
        severity: info | warning | error when it speaks.
        function: (context, thresholds) -> Outcome; raises Missing where the run lacks what it needs.
        sources: papers or threads it rests on.
        try_next: what to do when it speaks.
    """

    code: str
    title: str
    needs: str
    severity: str
    function: Callable[[CheckContext, Thresholds], Outcome]
    sources: tuple[str, ...]
    try_next: tuple[str, ...]

    def run(self, context: CheckContext, thresholds: Thresholds) -> dict[str, Any]:
        """The finding, with the keys of `dpo-diag explain --json` (DESIGN section 6)."""
        try:
            # Logs hold infinities and numbers like 1e300; what overflows becomes NaN, which speaks for no effect.
            with np.errstate(all="ignore"):
                result = self.function(context, thresholds)
        except Missing as missing:
            result = Outcome("not_applicable", str(missing))
        spoke = result.outcome == "speaks"
        return {
            "code": self.code,
            "title": self.title,
            "outcome": result.outcome,
            "reason": result.reason,
            "severity": result.severity or self.severity,
            "evidence": plain(result.evidence),
            "try": list(self.try_next) if spoke else [],
            "sources": list(self.sources),
        }


def plain(value: Any) -> Any:
    """The same structure in strict JSON types; NaN and infinities become None."""
    from dpo_diag.diagnosis.checks.stats import Interval

    if isinstance(value, (Interval, stats.Interval)):
        return {"value": plain(value.value), "low": plain(value.low), "high": plain(value.high), "n": value.n}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
