"""DVG013: better on questions like the training ones than on paraphrased or held-out ones, and parting further."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from dpo_diag.diagnosis import evidence
from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, cannot_tell, silent, speaks, would_tell
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.checks.shared.scores import READS, shown
from dpo_diag.diagnosis.measure import Measure
from dpo_diag.stats import Interval
from dpo_diag.thresholds import Thresholds

# Tags are free words of whoever wrote the prompts; these name the two kinds in the sets that we know.
LIKE_TRAINING = re.compile(r"train|template|like|(?<!un)seen|familiar", re.IGNORECASE)
UNLIKE_TRAINING = re.compile(r"paraphras|held|unseen|novel|fresh|test|reword|probe", re.IGNORECASE)


def memorisation(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Compares the change of both kinds of questions: checked answers by tag, else scores by split."""
    like, unlike = (evidence.answers_change(ctx.run, tag, t) for tag in (LIKE_TRAINING, UNLIKE_TRAINING))
    if like is None or unlike is None:
        like, unlike = _of_scores(ctx, t)
    gap = _difference(like.change, unlike.change)
    first, second = shown([like, unlike], t)
    measured: dict[str, Any] = {"training_like": first, "other": second, "gap_of_changes": gap}
    if gap.above and gap.value >= t["memorisation_min_gap"]:
        told = "the gain does not carry over" if like.change.value > 0 else "only what resembles training held"
        return speaks(
            f"{like.what} of {like.split} changed by {like.change.value:+.3f}, {unlike.what} of {unlike.split} by "
            f"{unlike.change.value:+.3f}: {told}",
            **measured,
        )
    if gap.value >= t["memorisation_min_gap"]:
        return cannot_tell(
            f"the two scores parted by {gap}: inside the noise{would_tell(gap, 'questions each')}", **measured
        )
    return silent("training-like and other questions moved alike", **measured)


def _of_scores(ctx: CheckContext, t: Thresholds) -> tuple[Measure, Measure]:
    """Changes of the first score on a training-like set, and of the score that changed worst on another set.

    Raises:
        Missing: one of the two was not measured.
    """
    curves = evidence.score_curves(ctx.run, ctx.window.first, ctx.window.last)
    changes = [m for c in curves if c.is_proportion and (m := c.change(None, None, t)) is not None]
    like = [m for m in changes if ctx.run.role(m.split) in ("train", "train_probe")]
    unlike = [m for m in changes if m not in like]
    if not like or not unlike:
        raise Missing("needs scores on training-like and on paraphrased or held-out questions, at two steps")
    return like[0], min(unlike, key=lambda m: m.change.value)


def _difference(a: Interval, b: Interval) -> Interval:
    """a - b of two independent changes: their half widths add in quadrature (Newcombe)."""
    value = a.value - b.value
    below, above = np.hypot(a.value - a.low, b.high - b.value), np.hypot(a.high - a.value, b.value - b.low)
    return Interval(value, value - float(below), value + float(above), min(a.n, b.n), level=a.level)


register(
    Check(
        code="DVG013",
        title="memorisation",
        says="The score on questions like the training ones rose, or held, while that on paraphrased or held-out ones "
        "did not: the two changes are at least 5 points apart, beyond noise.",
        why="The model learned the training wording. Users will word it otherwise, and the checkpoint that looks best "
        "on familiar questions is not the best.",
        needs="scores on training-like and on paraphrased or held-out questions at two steps",
        severity="warning",
        evidence={
            "training_like": "change on training-like questions: score, split, from, to, n, change (a share, with "
            "its interval), direction",
            "other": "the same on the other questions, the split that changed worst",
            "gap_of_changes": "training-like less other, a share, with its interval",
        },
        false_alarms=("the other questions are of another kind or difficulty, not only of another wording",),
        bad=Example(
            "From 0.60 to 0.85 on training-like questions, from 0.60 to 0.55 on paraphrased ones.",
            fixed={"score/accuracy@train_like": [0.6, 0.85], "score/accuracy@paraphrased": [0.6, 0.55]},
            answers=500,
        ),
        good=Example(
            "Both gain about 10 points.",
            fixed={"score/accuracy@train_like": [0.6, 0.7], "score/accuracy@paraphrased": [0.6, 0.69]},
            answers=500,
        ),
        try_next=("stop earlier, add varied prompts, and choose checkpoints by the held-out score",),
        sources=(),
        since="0.1.0",
        function=memorisation,
        reads=("memorisation_min_gap", *READS),
    )
)
