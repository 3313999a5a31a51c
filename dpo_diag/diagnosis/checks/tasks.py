"""What the model does, not what it likes: DVG013, 018, 019, 025. Only these can make a verdict say harm."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from dpo_diag.diagnosis import evidence
from dpo_diag.diagnosis.checks.base import Missing, Outcome, Thresholds, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.falls import chosen_falls
from dpo_diag.diagnosis.evidence import Measure
from dpo_diag.stats import Interval
from dpo_diag.text import percent

_SEEN = re.compile(r"train|template|like|(?<!un)seen|familiar", re.IGNORECASE)
_UNSEEN = re.compile(r"paraphras|held|unseen|novel|fresh|test|reword|probe", re.IGNORECASE)


def task_measures(ctx: CheckContext, t: Thresholds) -> list[Measure]:
    """The task scores and checked answers that the verdict judges, between the first and the last step.

    Raises:
        Missing: no score at two steps with its n, and no checked answers.
    """
    found = evidence.measures(ctx.run, ctx.from_step, ctx.to_step, t["confidence_scores"])
    found = [m for m in found if m.kind in evidence.TASK_KINDS and m.change.n]
    if not found:
        raise Missing("no task score at two steps with its n, and no checked answers")
    return found


def _shown(measures: list[Measure], t: Thresholds) -> list[dict[str, Any]]:
    return [
        {"score": m.what, "split": m.split, "from": m.before, "to": m.after, "n": m.change.n,
         "steps": [m.from_step, m.to_step], "paired": m.flips is not None, "change": m.change,
         "direction": m.direction(t)}
        for m in measures
    ]  # fmt: skip


def score_fell(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG025: a task score fell beyond its interval, and by enough to matter."""
    measures = task_measures(ctx, t)
    worse = [m for m in measures if m.direction(t) == "worse"]
    if worse:
        return speaks(str(min(worse, key=lambda m: m.change.value)), scores=_shown(measures, t))
    unclear = [m for m in measures if m.direction(t) == "unclear" and m.change.value < 0]
    if unclear:
        return cannot_tell(f"{unclear[0]}: inside its noise", scores=_shown(measures, t))
    return silent("no task score fell", scores=_shown(measures, t))


def benign(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG018: chosen fell in likelihood, and the task score or the outputs did not get worse."""
    falls = [f for f in chosen_falls(ctx, t) if f.material(t) and f.delta.below]
    if not falls:
        return silent("chosen did not fall, so there is nothing to excuse")
    preferred = evidence.newest_preferences(ctx.run, t["confidence_scores"])
    measures = ctx.maybe(lambda: task_measures(ctx, t)) or []
    if not measures and not preferred:
        measures = task_measures(ctx, t)
    shown: dict[str, Any] = {
        "scores": _shown(measures, t), "review": _shown(preferred, t), "fall": falls[0].evidence(),
    }  # fmt: skip
    if any(m.direction(t) == "worse" for m in measures):
        return silent("a task score fell (DVG025)", **shown)
    against = [m for m in preferred if m.direction(t) == "worse"]
    if against:
        return silent(f"people preferred the earlier answers: {against[0]} (DVG019)", **shown)
    # A review of some dozens of prompts can hardly exclude a small fall: beside scores, it only speaks against them.
    measures = measures or preferred
    worst = min(measures, key=lambda m: m.change.low)
    if all(m.direction(t) in ("better", "no_worse") for m in measures):
        return speaks(
            f"chosen fell by {-falls[0].delta.value:.3g} {falls[0].unit.replace('_', ' ')}, and no score got worse: "
            f"{worst}",
            **shown,
        )
    unclear = next(m for m in measures if m.direction(t) == "unclear")
    margin = percent(t["verdict.benign_margin"])
    return cannot_tell(f"{unclear}: a fall of {margin} is not excluded", **shown)


def memorisation(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG013: better on questions like the training ones than on paraphrased or held-out ones, and parting further."""
    level = t["confidence_scores"]
    seen, unseen = ([m for m in [evidence.answers_change(ctx.run, tag, level)] if m] for tag in (_SEEN, _UNSEEN))
    if not seen or not unseen:
        curves = [c for c in evidence.score_curves(ctx.run, ctx.from_step, ctx.to_step) if c.is_proportion]
        changes = [m for c in curves if (m := c.change(None, None, level)) is not None]
        unseen = [m for m in changes if _UNSEEN.search(m.split)]
        seen = [m for m in changes if _SEEN.search(m.split) and m not in unseen]
    if not seen or not unseen:
        raise Missing("needs scores on training-like and on paraphrased or held-out questions, at two steps")
    s, u = seen[0], min(unseen, key=lambda m: m.change.value)
    a, b = s.change, u.change
    parted = a.value - b.value
    # Two independent intervals: the difference's half widths add in quadrature.
    half = float(np.hypot(a.value - a.low, b.high - b.value))
    other = float(np.hypot(a.high - a.value, b.value - b.low))
    gap = Interval(parted, parted - half, parted + other, int(min(a.n, b.n)))
    shown: dict[str, Any] = {"training_like": _shown([s], t)[0], "other": _shown([u], t)[0], "gap_of_changes": gap}
    if gap.above and gap.value >= t["memorisation_min_gap"]:
        return speaks(
            f"{s.what} of {s.split} changed by {a.value:+.3f}, {u.what} of {u.split} by {b.value:+.3f}: the gain does "
            "not carry over",
            **shown,
        )
    if gap.value >= t["memorisation_min_gap"]:
        return cannot_tell(f"the two scores parted by {gap}: inside the noise", **shown)
    return silent("training-like and other questions moved alike", **shown)


def best_not_last(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG019: an earlier checkpoint scores better than the last one, with an interval (corrected for looking)."""
    measures = evidence.best_and_last(ctx.run, t["confidence_scores"], ctx.from_step, ctx.to_step)
    if not measures:
        raise Missing("no task score at three steps with its n: likelihoods alone do not rank checkpoints")
    shown = [
        {"score": f"{m.what} on {m.split}", "best_step": m.from_step, "best": m.before, "last": m.after,
         "n": m.change.n, "change": m.change, "is_last": m.from_step == m.to_step}
        for m in measures
    ]  # fmt: skip
    worse = [m for m in measures if m.direction(t) == "worse"]
    if worse:
        first = min(worse, key=lambda m: m.change.value)
        return speaks(f"step {first.from_step} was better than the last one: {first}", scores=shown)
    unclear = [m for m in measures if m.direction(t) == "unclear" and m.change.value < 0]
    if unclear:
        return cannot_tell(f"step {unclear[0].from_step} seems better, inside the noise: {unclear[0]}", scores=shown)
    return silent("the last checkpoint is as good as any", scores=shown)
