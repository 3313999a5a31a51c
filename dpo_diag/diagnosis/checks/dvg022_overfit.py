"""DVG022: from some step on the held-out loss rises while the training loss goes on falling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import LOWER_RATE, SEVERAL_EPOCHS, SOUND, Advice, Condition, Situation
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, cannot_tell, inside_noise, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.pair_rows import REFERENCE
from dpo_diag.ends import QUARTER
from dpo_diag.paired import t_test
from dpo_diag.stats import LEAST_FOR_T, corrected_for, noise_sd
from dpo_diag.text import by
from dpo_diag.thresholds import Thresholds

LATER_MINIMUM = Condition("the minimum lies after the start", lambda s, t: not _at_start(s))
NO_MINIMUM = Condition("the minimum is the start", lambda s, t: _at_start(s))


def _at_start(situation: Situation) -> bool:
    return situation.findings.get("DVG022", {}).get("best_step") in (REFERENCE, 0, None)


def overfit(ctx: CheckContext, t: Thresholds) -> Outcome:
    """From the pair losses of a held-out set, else from its logged loss."""
    split = ctx.maybe(lambda: ctx.pairs.split)
    # A set drawn from the training pairs cannot show overfitting.
    if split is not None and ctx.run.role(split) not in ("train", "train_probe"):
        return _of_pairs(ctx, split, t)
    return _of_means(ctx, t)


def _of_pairs(ctx: CheckContext, split: str, t: Thresholds) -> Outcome:
    steps = ctx.pairs.steps
    losses = [ctx.pairs.losses(ctx.pairs.at(step)) for step in steps]
    if not all(np.isfinite(values).any() for values in losses):
        raise Missing("some evaluation has no finite pair loss")
    means = [float(np.nanmean(values)) for values in losses]
    best = int(np.argmin(means))
    frames = ctx.pairs.change(steps[best], steps[-1])
    (before, after), ids = (ctx.pairs.losses(frame) for frame in frames), frames[1].index
    rise = ctx.pairs.intervals(t).mean(after - before, ids)
    # The minimum is chosen by looking at every step: Bonferroni over the others.
    p = corrected_for(t_test(rise), len(steps) - 1)
    evidence: dict[str, Any] = {
        "split": split, "best_step": steps[best], "loss_at_best": means[best], "last_loss": means[-1], "rise": rise,
        "p": p,
    }  # fmt: skip
    least, told = _least_rise(ctx, means[best], t), rise.above and p < 1.0 - rise.level
    if best < len(steps) - 1 and rise.value >= least and not told:
        return cannot_tell(f"the held-out loss {by(rise.value)} from its minimum {inside_noise(rise, p)}", **evidence)
    if best == len(steps) - 1 or not told or rise.value < least:
        return silent("the held-out loss does not rise from its minimum beyond noise", **evidence)
    return _onset(ctx, 0.0 if steps[best] == REFERENCE else float(steps[best]), t, evidence)


def _of_means(ctx: CheckContext, t: Thresholds) -> Outcome:
    loss = ctx.logged.fixed("loss", LEAST_FOR_T)
    values, n = loss.values, len(loss)
    best = int(values.argmin())
    lowest, last = float(values[best]), float(values[-1])
    evidence: dict[str, Any] = {
        "split": loss.split, "best_step": loss.steps[best], "loss_at_best": lowest, "last_loss": last,
        "evaluations": n,
    }  # fmt: skip
    least = _least_rise(ctx, lowest, t)
    chance = t["overfit_sds"] * noise_sd(values) if n >= t["overfit_min_evaluations"] else 0.0
    if best == n - 1 or last - lowest < max(least, chance):
        return silent("the held-out loss ends at its minimum, or no more than noise above it", **evidence)
    if best == n - 2 and last - lowest < 2 * least:
        return cannot_tell("only the last evaluation lies above the minimum", **evidence)
    return _onset(ctx, float(loss.steps[best]), t, evidence)


def _least_rise(ctx: CheckContext, best: float, t: Thresholds) -> float:
    """The smallest rise that matters: a share of the minimum, or, near a floor of 0, of a share of the start."""
    start = ctx.start.value if math.isfinite(ctx.start.value) else abs(best)
    return t["overfit_min_share"] * max(abs(best), t["overfit_least_of_start"] * start)


def _onset(ctx: CheckContext, step: float, t: Thresholds, evidence: dict[str, Any]) -> Outcome:
    """Overfitting, unless the training loss rises from that step on as well."""
    train = ctx.maybe(ctx.logged.training, "loss")
    if train is not None:
        before, after = train.values[train.steps <= step], train.values[train.steps > step]
        if len(before) < LEAST_FOR_T:
            # The minimum is at the very start: compare with the loss's own start, or with the first rows.
            before = np.full(LEAST_FOR_T, ctx.start.value) if ctx.start.known else train.values[:LEAST_FOR_T]
        if len(after) >= LEAST_FOR_T:
            levels = [float(part[-max(LEAST_FOR_T, int(len(part) * QUARTER)) :].mean()) for part in (before, after)]
            evidence["train_loss"] = levels
            # Both levels are means of three rows or more.
            if levels[1] - levels[0] > t["overfit_train_sds"] * noise_sd(train.values) * math.sqrt(2 / LEAST_FOR_T):
                return silent("held-out and training loss rise together: divergence, not overfitting", **evidence)
    return speaks(
        f"the held-out loss rises from {evidence['loss_at_best']:.4g} ({ctx.info.at(step)}) to "
        f"{evidence['last_loss']:.4g}",
        **evidence,
    )


register(
    Check(
        code="DVG022",
        title="overfit onset",
        says="The held-out loss rises from its minimum by more than noise and 5 % while the training loss does not.",
        why="From that step on the model learns the training pairs, not the preference. It is the earliest sign that "
        "fewer epochs would do.",
        needs="the held-out loss at three steps",
        severity="warning",
        evidence={
            "split": "the held-out set",
            "best_step": "step of the smallest held-out loss",
            "loss_at_best": "the held-out loss there",
            "last_loss": "the held-out loss at the end",
            "rise": "pairs: mean paired rise from the minimum, with its interval",
            "p": "pairs: its p-value, corrected for the choice of the minimum",
            "evaluations": "means: evaluations of the held-out set",
            "train_loss": "training loss up to the minimum and at the end",
        },
        false_alarms=("a held-out set of other data than the training's: it may rise without overfitting",),
        bad=Example(
            "The held-out loss turns at 0.55 and ends at 0.7; the training loss falls to 0.1.",
            train={"loss": np.linspace(0.69, 0.1, 40)},
            fixed={"loss": [0.69, 0.6, 0.55, 0.58, 0.63, 0.7]},
            every=20,
        ),
        good=Example(
            "The held-out loss falls to 0.46, with a dent.",
            train={"loss": np.linspace(0.69, 0.3, 40)},
            fixed={"loss": [0.63, 0.68, 0.59, 0.57, 0.565, 0.49, 0.46]},
            every=20,
        ),
        try_next=(
            Advice("stop at the step of the minimum", (SOUND, LATER_MINIMUM)),
            Advice("train for fewer epochs", (SOUND, SEVERAL_EPOCHS, LATER_MINIMUM)),
            Advice("lower the learning rate: the held-out loss rose from its start on", (*LOWER_RATE.when, NO_MINIMUM)),
        ),
        sources=("what log linters look for",),
        since="0.1.0",
        function=overfit,
        reads=(
            "confidence",
            "overfit_min_share",
            "overfit_sds",
            "overfit_train_sds",
            "overfit_min_evaluations",
            "overfit_least_of_start",
        ),
    )
)
