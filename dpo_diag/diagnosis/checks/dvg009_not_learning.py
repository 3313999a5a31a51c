"""DVG009: neither loss nor margin nor accuracy improved beyond noise, and a useful improvement is excluded."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import (
    NOT_WORSE,
    RATE_HIGH,
    RATE_LOW,
    RATE_UNKNOWN,
    REFERENCE_RIGHT,
    SOUND,
    TRAINED,
    Advice,
)
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, cannot_tell, inside_noise, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.checks.shared.logged import Series
from dpo_diag.diagnosis.checks.shared.loss import FLOOR_EVIDENCE, FLOOR_READS, at_floor, no_gradient
from dpo_diag.ends import LEAST_ROWS, ends_of
from dpo_diag.losses import has_nll
from dpo_diag.stats import Interval, noise_sd
from dpo_diag.text import by, interval, plural
from dpo_diag.thresholds import Thresholds

METRICS = (("loss", -1.0), ("rewards/margins", 1.0), ("rewards/accuracies", 1.0))
"""(metric, +1 where higher is better)."""


def not_learning(ctx: CheckContext, t: Thresholds) -> Outcome:
    """From pairs, else from the means of a fixed set and of the training batches together."""
    floor = at_floor(ctx, t)
    if floor is not None:
        return silent("the loss is at its floor: it learned all it can", **floor.evidence())
    known = ctx.known_start(t)
    start = ctx.start.value
    scale = start if start > 0 else math.log(2)
    change = ctx.maybe(ctx.pairs.change)
    if change is not None:
        before, after = (ctx.pairs.losses(frame) for frame in change)
        return _of_pairs(ctx.pairs.intervals(t).mean(before - after, change[1].index), scale, t)
    never = _never_preferred(ctx, t)
    if never is not None:
        return never
    fixed = None if _has_nll(ctx) else ctx.maybe(ctx.logged.fixed, "loss", 2)
    evidence: dict[str, Any] = {}
    if fixed is not None:
        begin = float(fixed.values[0]) if known is None else known
        fall = begin - float(fixed.values[-1])
        evidence |= {"split": fixed.split, "fall_of_loss": fall, "evaluations": len(fixed)}
        chance = t["not_learning_sds"] * noise_sd(fixed.values) if len(fixed) >= LEAST_ROWS else 0.0
        if fall > max(t["not_learning_share"] * scale, chance):
            return silent("the loss of the fixed set fell", **evidence)
    gains = _gains(ctx, t, evidence)
    rates = ctx.maybe(ctx.logged.training, "learning_rate", 2)
    if rates is not None:
        evidence["learning_rate_from_to_max"] = [rates.values[0], rates.values[-1], rates.values.max()]
    if not gains:
        few = _of_few_rows(ctx, t, evidence)
        if few is not None:
            return few
        if fixed is None:
            raise Missing("no loss, margin or accuracy at enough steps")
        return _of_evaluations(fixed, t, evidence)
    for name, gain in gains.items():
        if gain.above and gain.value >= t[_LEAST.get(name, "not_learning_least")]:
            return silent(f"{_WORDS[name]} improved beyond noise", **evidence)
    return _of_batches(ctx, gains, t["not_learning_share"] * scale, t, evidence)


_LEAST = {"rewards/accuracies": "not_learning_least_accuracy"}
_WORDS = {"loss": "the loss", "rewards/margins": "the margin", "rewards/accuracies": "the reward accuracy"}


def _has_nll(ctx: CheckContext) -> bool:
    """Whether the loss holds an NLL term: it then falls as any supervised loss does, whatever is preferred."""
    logged = any(ctx.logged.find("nll_loss", split) is not None for split in ctx.logged.splits)
    return (
        logged
        or has_nll(ctx.info.loss.types if ctx.info.loss else ctx.info.loss_names)
        or "orpo" in ctx.info.loss_names
    )


def _never_preferred(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    """Speaks where chosen never came to be preferred: the reward accuracy stays below one half to the end, without
    rising, and no margin is positive. The loss may fall all the same, through an NLL term or from a bad start."""
    for split in ctx.logged.splits:
        rows = ctx.logged.together(["rewards/accuracies", "rewards/margins"], split)
        # Before the first step all pairs tie, which counts as an accuracy of 0.
        moved = None if rows is None else rows[rows["rewards/margins"] != 0].to_numpy().T
        if moved is None or moved.shape[1] < t["not_learning_never_rows"]:
            continue
        (values, margins), k = moved, moved.shape[1] // 2
        late, highest = float(values[-k:].mean()), float(values[-k:].max())
        rose = late - float(values[:k].mean()) >= t["not_learning_least_accuracy"]
        most = t["not_learning_max_accuracy"] / (1 if values.size >= LEAST_ROWS else 2)
        if rose or highest >= most or float(margins[-k:].mean()) > 0:
            return None
        return speaks(
            f"the reward accuracy of {split} is {late:.2g} over the last {plural(k, 'row')} of {values.size}: the "
            "chosen answers never came to be preferred, whatever the loss did",
            split=split, late_accuracy=late, rows=values.size,
        )  # fmt: skip
    return None


def _of_few_rows(ctx: CheckContext, t: Thresholds, evidence: dict[str, Any]) -> Outcome | None:
    """Two to five training rows: only a fall far larger than what the rows move among themselves can be told."""
    # An NLL term falls whatever is preferred: there the margin tells.
    name, sign = METRICS[1] if _has_nll(ctx) else METRICS[0]
    series = ctx.maybe(ctx.logged.training, name, 2)
    if series is None or len(series) >= LEAST_ROWS:
        return None
    ends, known = ends_of(series.values), ctx.known_start(t)
    begin = known if known is not None and name == "loss" else ends.start
    gain = ends.level.shifted(-begin).scaled(sign)
    evidence |= {"gain_in_few_rows": gain, "rows": len(series)}
    if gain.above and gain.value >= t["few_rows_factor"] * t["not_learning_least"]:
        return silent(f"{_WORDS[name]} improved over {len(series)} rows; so few do not show its noise", **evidence)
    return cannot_tell(f"{len(series)} rows of {name}, too few to tell a gain from noise", **evidence)


def _of_pairs(gain: Interval, scale: float, t: Thresholds) -> Outcome:
    evidence: dict[str, Any] = {"fall_of_loss_on_pairs": gain, "rose": gain.below}
    if gain.above and gain.value >= t["not_learning_least_pairs"] * scale:
        return silent("the fixed set's loss fell beyond noise", **evidence)
    least = t["not_learning_share"] * scale
    if gain.high < least or (gain.value <= 0 and gain.high < 2 * least):
        so = "nothing that matters" if gain.value >= 0 else "it did not fall"
        return speaks(f"{_change('the loss of the fixed set', gain, -1.0)}: {so}", **evidence)
    changed = f"the loss of the fixed set {by(-gain.value)} {inside_noise(gain.scaled(-1.0))}"
    return cannot_tell(changed, **evidence)


def _change(what: str, gain: Interval, sign: float) -> str:
    """How a metric moved, whose improvement is `gain`: "the loss fell by 0.02 (99 % interval -0.05 to +0.01)"."""
    change = gain.scaled(sign)
    return f"{what} {by(change.value)} ({interval(change.bounds, change.level)})"


def _gains(ctx: CheckContext, t: Thresholds, evidence: dict[str, Any]) -> dict[str, Interval]:
    """Improvement of each metric of the training batches, higher is better; the loss first, where it is logged."""
    gains: dict[str, Interval] = {}
    frozen, nll, known = no_gradient(ctx), _has_nll(ctx), ctx.known_start(t)
    for name, sign in METRICS:
        series = None if nll and name == "loss" else ctx.maybe(ctx.logged.training, name)
        trend = None if series is None else series.ends(t["confidence"], sign)
        if trend is None:
            continue
        gain = trend.change
        if name == "loss" and known is not None and not frozen:
            # What was learned before the first logged row counts: the start is known exactly.
            from_start = trend.level.shifted(known)
            evidence["fall_of_loss_from_start"] = from_start
            gain = max(gain, from_start, key=lambda i: i.low)
        if name == "rewards/margins" and not ctx.reference_free and not frozen and not ctx.wrong_reference(t):
            gain = max(gain, trend.level, key=lambda i: i.low)
        if name == "rewards/accuracies" and not trend.level.low > 0.5:
            # An accuracy that rises to one half is a wobble, no preference.
            gain = replace(gain, value=min(gain.value, 0.0))
        evidence[f"gain_{name}"] = gain
        gains[name] = gain
    return gains


def _of_evaluations(fixed: Series | None, t: Thresholds, evidence: dict[str, Any]) -> Outcome:
    """Where the training batches hold nothing: the evaluations' loss did not fall."""
    if fixed is None or len(fixed) < t["not_learning_min_evaluations"]:
        return cannot_tell("too few evaluations and no training rows", **evidence)
    return speaks(f"the loss of {fixed.split} did not fall over {len(fixed)} evaluations", **evidence)


def _of_batches(
    ctx: CheckContext, gains: dict[str, Interval], least: float, t: Thresholds, evidence: dict[str, Any]
) -> Outcome:
    """Whether an improvement of `least` is excluded."""
    name, gain = next(iter(gains.items()))
    changed = _change(_WORDS[name], gain, dict(METRICS)[name])
    many = gain.n >= t["not_learning_min_rows"]
    bound = min(gain.high, _bound_by_halves(ctx, t)) if many else gain.high
    evidence["improvement_excluded_above"] = bound
    if gain.high < least or (many and (gain.value <= 0 or bound < 2 * least)):
        others = " and ".join(_WORDS[other].removeprefix("the ") for other in gains if other != name)
        neither = f", in {others} neither" if others else ""
        what = "too little to matter" if gain.above else "nothing that matters beyond noise"
        rows = len(ctx.logged.training(name))
        return speaks(f"{changed} over {rows} rows: {what}{neither}", **evidence)
    return cannot_tell(f"{changed}: inside its noise", **evidence)


def _bound_by_halves(ctx: CheckContext, t: Thresholds) -> float:
    """Upper bound of the improvement by whole halves, which see more than quarters: of the second half over the first,
    and, where the loss may well be a sigmoid (its first half lies around ln 2), of the second half over ln 2."""
    loss = ctx.maybe(ctx.logged.training, "loss")
    if loss is None or len(loss) < LEAST_ROWS:
        return math.inf
    halves = ends_of(loss.values, level=t["confidence"], share=0.5)
    bound, start = -halves.change.low, ctx.start.value
    spread = halves.level.high - halves.level.value
    if math.isfinite(start) and abs(halves.start - start) <= spread:
        bound = min(bound, start - halves.level.low)
    return bound


register(
    Check(
        code="DVG009",
        title="not learning",
        says="Neither the loss nor the margin nor the accuracy improved beyond noise, and an improvement that would "
        "matter (5 % of the loss at the start) is excluded.",
        why="A flat noisy loss looks like a slow start. With enough rows it is not: the run does not learn, and more "
        "steps at these settings will not help.",
        needs="loss, margins or accuracy at enough steps",
        severity="warning",
        evidence={
            **FLOOR_EVIDENCE,
            "fall_of_loss_on_pairs": "fall of the mean pair loss of a fixed set, with its interval",
            "rose": "whether that interval lies wholly below 0: the loss rose beyond its noise",
            "split": "the fixed set, or the split whose loss is at its floor",
            "fall_of_loss": "means of a fixed set: fall from the start to the last evaluation",
            "evaluations": "means of a fixed set: evaluations",
            "fall_of_loss_from_start": "training: loss of the last rows below the known start, with its interval",
            "late_accuracy": "mean reward accuracy of the later half of the rows, where it never rose above one half",
            "rows": "rows behind it",
            "gain_in_few_rows": "two to five training rows: gain of the loss or margin, give or take half their range",
            "gain_loss": "training: fall of the loss, first to last rows (a quarter of all, at least three)",
            "gain_rewards/margins": "training: rise of the margin",
            "gain_rewards/accuracies": "training: rise of the reward accuracy, a share",
            "learning_rate_from_to_max": "first, last and largest logged learning rate",
            "improvement_excluded_above": "an improvement of the loss larger than this is excluded",
        },
        false_alarms=(
            "the window ends inside the warm-up",
            "training batches alone, whose loss hides a held-out improvement smaller than their noise",
        ),
        bad=Example(
            "200 rows around 0.70 with a standard deviation of 0.22 (batches of four), accuracy around one half.",
            train={"loss": 0.7 + noise(200, 0.22, 1), "rewards/accuracies": np.clip(0.5 + noise(200, 0.25, 2), 0, 1)},
            every=1,
        ),
        good=Example(
            "The loss falls from 0.69 to 0.5 under a noise of 0.05.",
            train={"loss": np.linspace(math.log(2), 0.5, 60) + noise(60, 0.05)},
        ),
        try_next=(
            Advice("raise the learning rate", (SOUND, TRAINED, REFERENCE_RIGHT, RATE_LOW, NOT_WORSE)),
            Advice(
                "lower the learning rate: so high a rate can undo in one step what another taught", (SOUND, RATE_HIGH)
            ),
            Advice("find out the learning rate: it is not recorded", (SOUND, RATE_UNKNOWN)),
            Advice("check that warm-up is over and that a batch is more than a handful of pairs", (SOUND, NOT_WORSE)),
            "check that chosen and rejected are not swapped in part of the data",
        ),
        sources=(),
        since="0.1.0",
        function=not_learning,
        reads=(
            "confidence",
            "not_learning_share",
            "not_learning_least",
            "not_learning_least_accuracy",
            "not_learning_max_accuracy",
            "not_learning_never_rows",
            "few_rows_factor",
            "not_learning_least_pairs",
            "not_learning_min_rows",
            "not_learning_min_evaluations",
            "not_learning_sds",
            *FLOOR_READS,
        ),
    )
)
