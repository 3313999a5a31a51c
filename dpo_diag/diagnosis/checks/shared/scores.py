"""Task scores, checked answers and people's verdicts as checks use them; `diagnosis.evidence` measures and judges them,
for the verdict and for the checks alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dpo_diag.diagnosis import evidence
from dpo_diag.diagnosis.checks.shared.check import Missing
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.measure import Measure
from dpo_diag.diagnosis.said import CAVEAT
from dpo_diag.thresholds import Thresholds

READS = ("confidence_scores", "least_for_interval", "verdict.benign_margin", "verdict.least_harm")
"""Thresholds that decide what a score says."""
EVIDENCE: Mapping[str, str] = {
    "scores": "each score: score, split, steps, from, to (shares), n, paired, change (with its interval), p, q (p "
    "corrected for what stands in corrected_for), direction (better, worse, no_worse, unclear)",
}


def task_measures(ctx: CheckContext, t: Thresholds) -> list[Measure]:
    """The task scores and checked answers that the verdict judges, between the first and the last step.

    Raises:
        Missing: no score at two steps with its n, and no checked answers.
    """
    measures = evidence.measures(ctx.run, ctx.start_step, ctx.window.last, t)
    of_task = [m for m in measures if m.kind in evidence.TASK_KINDS and m.change.n]
    if not of_task:
        raise Missing("no task score at two steps with its n, and no checked answers")
    return of_task


def caveat(ctx: CheckContext, t: Thresholds) -> str:
    """What stands behind a fall of likelihood where no task score or checked answers say more; "" where they do."""
    return "" if ctx.maybe(task_measures, ctx, t) else f"; {CAVEAT}"


def shown(measures: Iterable[Measure], t: Thresholds) -> list[dict[str, Any]]:
    """The measures as a finding's evidence holds them."""
    return [
        {
            "score": m.what, "split": m.split, "steps": [m.from_step, m.to_step], "from": m.before, "to": m.after,
            "n": m.change.n, "paired": m.paired, "change": m.change, "p": m.p, "q": m.q,
            "corrected_for": m.corrected or None, "direction": m.direction(t),
        }
        for m in measures
    ]  # fmt: skip


def worst(measures: Iterable[Measure], t: Thresholds) -> Measure | None:
    """Of those that got worse, the one that fell most; None if none did."""
    worse = [m for m in measures if m.direction(t) == "worse"]
    return min(worse, key=lambda m: m.change.value) if worse else None


def unclear(measures: Iterable[Measure], t: Thresholds) -> Measure | None:
    """The first that fell inside its noise; None if none did."""
    return next((m for m in measures if m.direction(t) == "unclear" and m.change.value < 0), None)
