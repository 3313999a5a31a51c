"""Does it train at all: DVG008 dead, DVG009 not learning, DVG010 saturated, DVG023 stagnation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks.base import Missing, Outcome, Thresholds, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.series import Series
from dpo_diag.diagnosis.checks.stats import Interval, ends, mean_interval, noise_sd


def _losses(ctx: CheckContext) -> tuple[Series | None, Series | None]:
    """(loss of the training batches, loss of a fixed set), where there are any."""
    return ctx.maybe(lambda: ctx.train_series("loss", 1)), ctx.maybe(lambda: ctx.fixed_series("loss"))


def _pair_movement(ctx: CheckContext) -> float | None:
    """Largest change of any sum over the measured steps of a fixed set (nats)."""
    found = ctx.maybe(ctx.change)
    if found is None:
        return None
    before, after = found
    return float((after[["s_c", "s_r"]] - before[["s_c", "s_r"]]).abs().to_numpy().max())


def dead(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG008: no gradient reaches the weights; nothing moves."""
    grads = ctx.maybe(lambda: ctx.train_series("grad_norm", 3))
    moved = _pair_movement(ctx)
    rates = ctx.maybe(lambda: ctx.train_series("learning_rate", 3))
    evidence: dict[str, Any] = {"largest_change_of_a_sum": moved}
    moving = _moving(ctx, t)
    if rates is not None and float(np.abs(rates.values).max()) == 0.0 and moving is None and not moved:
        return speaks("the learning rate is 0 in every row", **evidence, rows=len(rates))
    if grads is not None:
        zero = np.abs(grads.values) <= t["dead_grad_norm"]
        evidence |= {"rows": len(grads), "rows_without_gradient": int(zero.sum()), "first_step": grads.steps[0]}
        if zero.all() and (moving is not None or moved):
            return silent(f"grad_norm is logged as 0, but {moving or 'log-probs'} moved: the logged number is wrong",
                          **evidence)  # fmt: skip
        if zero.all():
            return speaks(f"grad_norm is 0 in all {len(grads)} rows: nothing is trained", **evidence)
        tail = len(zero) - int(np.flatnonzero(~zero)[-1]) - 1
        if tail >= max(3, t["dead_min_share"] * len(zero)) and not _at_floor(ctx, t):
            return speaks(
                f"grad_norm is 0 from step {grads.steps[-tail]:.0f} on, and the loss is not at its floor",
                **evidence,
            )
    if moved is not None and moved == 0.0:
        return speaks("not one log-prob of the fixed set changed between the first and the last step", **evidence)
    if grads is None and moved is None:
        still = _constant_evaluations(ctx)
        if still is None:
            raise Missing("neither grad_norm nor a fixed set at two steps is recorded")
        if still:
            return speaks("every metric of the fixed set is the same at all steps", **evidence)
    return silent("gradients flow, or log-probs move", **evidence)


def _moving(ctx: CheckContext, t: Thresholds) -> str | None:
    """A metric of the training batches that changed beyond noise: some trainers log a gradient norm or rate of 0."""
    for name in ("loss", "rewards/margins", "rewards/chosen"):
        series = ctx.maybe(lambda name=name: ctx.train_series(name))  # type: ignore[misc]
        trend = ends(series.values, t["confidence"]) if series is not None else None
        if trend is not None and (trend.delta.above or trend.delta.below):
            return name
    return None


def _constant_evaluations(ctx: CheckContext) -> bool | None:
    """Whether all metrics of a fixed set stay the same over at least three evaluations; None if there are not three."""
    for split in ctx.fixed_splits:
        curves = [ctx.find(n, split) for n in ("loss", "rewards/chosen", "logps/chosen", "ce/chosen")]
        known = [c.values for c in curves if c is not None and len(c) >= 3]
        if known:
            return all(float(np.ptp(v)) == 0.0 for v in known)
    return None


def _at_floor(ctx: CheckContext, t: Thresholds) -> bool:
    return saturated_level(ctx, t) is not None


def saturated_level(ctx: CheckContext, t: Thresholds) -> dict[str, Any] | None:
    """Evidence that the loss ends at its floor, from a fixed set or the training batches; None if it does not."""
    start = ctx.start
    # A reference-free log-sigmoid loss has floor 0 too; any other unknown loss does not come near it.
    lowest = 0.0 if ctx.reference_free else start.floor
    span = (start.value if math.isfinite(start.value) else math.log(2)) - (lowest or 0.0)
    for series in _losses(ctx):
        # A loss with an NLL term has no floor that it could reach.
        if series is None or len(series) < 3 or ctx.find("nll_loss", series.split) is not None:
            continue
        finite = series.finite
        last = finite.values[-max(2, len(finite) // 5) :]
        floor, why = _floor(ctx, series, lowest)
        if floor is None:
            continue
        if float(np.median(last)) - floor <= t["saturation_share"] * span:
            at = finite.values - floor <= t["saturation_share"] * span
            return {
                "split": series.split, "last_loss": float(np.median(last)), "floor": floor, "floor_because": why,
                "since_step": float(finite.steps[int(np.argmax(at))]), "share_of_rows_there": float(at.mean()),
            }  # fmt: skip
    return None


def _floor(ctx: CheckContext, series: Series, known: float | None) -> tuple[float | None, str]:
    """The loss's floor; where the loss is unknown, a label smoothing that the numbers themselves show.

    With smoothing eps, loss = softplus(-m) + eps m for every pair of margin m: where all pairs are won and the loss
    is flat, (loss - softplus(-m)) / m is eps, the same in every row.
    """
    if known is None or ctx.maybe(ctx.spec) is not None:
        return known, ctx.start.reason
    frame = ctx.wide_rows(["loss", "rewards/margins", "rewards/accuracies"], series.split)
    if frame is not None and len(frame) >= 6:
        tail = frame.iloc[len(frame) // 2 :]
        margin = tail.iloc[:, 1].to_numpy()
        if float(tail.iloc[:, 2].min()) >= 0.99 and float(margin.min()) > 1.0:
            eps = (tail.iloc[:, 0].to_numpy() - np.log1p(np.exp(-margin))) / margin
            middle = float(np.median(eps))
            if 0.01 < middle < 0.5 and float(np.ptp(eps)) < 0.2 * middle:
                floor = -(1 - middle) * math.log1p(-middle) - middle * math.log(middle)
                return floor, f"label smoothing {middle:.3g} read off loss and margins"
    return known, ctx.start.reason


def saturated(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG010: the loss lies at its floor, so that it can no longer tell checkpoints apart and teaches nothing."""
    if not math.isfinite(ctx.start.value) and not ctx.reference_free:
        raise Missing(ctx.start.reason)
    if ctx.start.floor is None and ctx.start.known:
        raise Missing("this loss has no known floor")
    train, fixed = _losses(ctx)
    if train is None and fixed is None:
        by_pairs = _saturated_pairs(ctx, t)
        if by_pairs is None:
            raise Missing("no loss is logged, and none can be computed from pairs")
        return by_pairs
    found = saturated_level(ctx, t)
    last = {s.split: float(s.values[-1]) for s in (train, fixed) if s is not None and len(s)}
    if found is None:
        return silent("the loss is above its floor", last_loss=last, floor=ctx.start.floor)
    return speaks(
        f"the loss of {found['split']} ends at {found['last_loss']:.4g}, its floor ({found['floor']:.4g}), "
        f"since step {found['since_step']:.0f}",
        **found,
    )


def _saturated_pairs(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    found = ctx.maybe(ctx.change)
    if found is None or ctx.start.floor is None or ctx.maybe(ctx.spec) is None:
        return None
    last = float(np.mean(ctx.pair_loss(found[1])))
    if last - ctx.start.floor <= t["saturation_share"] * (ctx.start.value - ctx.start.floor):
        return speaks(
            f"the mean pair loss of {ctx.pair_split()} is {last:.4g}, at its floor",
            last_loss=last,
            floor=ctx.start.floor,
        )
    return silent("the mean pair loss is above its floor", last_loss=last, floor=ctx.start.floor)


def not_learning(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG009: neither loss nor margin nor accuracy improved beyond noise, and a useful improvement is excluded."""
    floor = saturated_level(ctx, t)
    if floor is not None:
        return silent("the loss is at its floor: it learned all it can", **floor)
    scale = math.log(2) if not math.isfinite(ctx.start.value) else max(ctx.start.value, 1e-9)
    evidence: dict[str, Any] = {}
    pairs = ctx.maybe(ctx.change)
    if pairs is not None:
        gain = mean_interval(ctx.pair_loss(pairs[0]) - ctx.pair_loss(pairs[1]), t["confidence"])
        evidence["fall_of_loss_on_pairs"] = gain
        return _learned(gain, t, scale, evidence, "the fixed set's loss")
    fixed = ctx.maybe(lambda: ctx.fixed_series("loss", 3))
    if fixed is not None:
        early = ctx.start.value if ctx.start.known else float(fixed.values[0])
        noise = noise_sd(fixed.values) if len(fixed) >= 6 else 0.0
        fall = early - float(fixed.values[-max(1, len(fixed) // 4) :].mean())
        evidence |= {"split": fixed.split, "fall_of_loss": fall, "evaluations": len(fixed)}
        if fall > max(t["not_learning_share"] * scale, 2 * noise):
            return silent("the loss of the fixed set fell", **evidence)
    better: list[Interval] = []
    for name, sign in (("loss", -1.0), ("rewards/margins", 1.0), ("rewards/accuracies", 1.0)):
        series = ctx.maybe(lambda name=name: ctx.train_series(name))  # type: ignore[misc]
        trend = ends(series.values, t["confidence"]) if series is not None else None
        if trend is None:
            continue
        d = trend.delta
        gain = d if sign > 0 else Interval(-d.value, -d.high, -d.low, d.n)
        if name == "loss" and ctx.start.known and not _frozen(ctx):
            # What was learned before the first logged row counts: the start is known exactly.
            level = trend.last_level
            from_start = Interval(
                ctx.start.value - level.value, ctx.start.value - level.high, ctx.start.value - level.low, d.n
            )
            evidence["fall_of_loss_from_start"] = from_start
            gain = max(gain, from_start, key=lambda i: i.low)
        if name == "rewards/margins" and not ctx.reference_free and not _frozen(ctx):
            gain = max(gain, trend.last_level, key=lambda i: i.low)
        evidence[f"gain_{name}"] = gain
        better.append(gain)
    if not better and fixed is None:
        raise Missing("no loss, margin or accuracy at enough steps")
    rates = ctx.maybe(lambda: ctx.train_series("learning_rate", 2))
    if rates is not None:
        evidence["learning_rate_from_to_max"] = [rates.values[0], rates.values[-1], rates.values.max()]
    least = t["not_learning_share"] * scale
    if any(g.low > 0 and g.value >= t["not_learning_least"] for g in better):
        return silent("loss, margin or accuracy improved beyond noise", **evidence)
    if not better:
        return (
            cannot_tell("too few evaluations and no training rows", **evidence)
            if len(fixed or ()) < 4
            else speaks(
                f"the loss of {fixed.split if fixed else '?'} did not fall over {len(fixed or ())} evaluations",
                **evidence,
            )
        )
    loss_gain = better[0]
    many = loss_gain.n >= t["not_learning_min_rows"]
    bound = min(loss_gain.high, _half_bound(ctx, t)) if many else loss_gain.high
    evidence["improvement_excluded_above"] = bound
    if loss_gain.high < least or (many and (loss_gain.value <= 0 or bound < 2 * least)):
        return speaks(
            f"the loss improved by {loss_gain} over {loss_gain.n} rows: nothing beyond noise; margin and accuracy no "
            "better",
            **evidence,
        )
    return cannot_tell(f"the loss improved by {loss_gain}: inside its noise", **evidence)


def _half_bound(ctx: CheckContext, t: Thresholds) -> float:
    """Upper bound of the improvement by whole halves, which see more than quarters: of the second half over the first,
    and, where the loss may well be a sigmoid (its first half lies around ln 2), of the second half over ln 2."""
    loss = ctx.maybe(lambda: ctx.train_series("loss"))
    halves = ends(loss.values, t["confidence"], 0.5) if loss is not None else None
    if halves is None:
        return math.inf
    bound = -halves.delta.low
    spread = halves.last_level.high - halves.last_level.value
    if math.isfinite(ctx.start.value) and abs(halves.first - ctx.start.value) <= spread:
        bound = min(bound, ctx.start.value - halves.last_level.low)
    return bound


def _frozen(ctx: CheckContext) -> bool:
    grads = ctx.maybe(lambda: ctx.train_series("grad_norm", 3))
    return grads is not None and float(np.abs(grads.values).max()) == 0.0


def _learned(gain: Interval, t: Thresholds, scale: float, evidence: dict[str, Any], what: str) -> Outcome:
    if gain.above and gain.value >= t["not_learning_least_pairs"] * scale:
        return silent(f"{what} fell beyond noise", **evidence)
    least = t["not_learning_share"] * scale
    if gain.high < least or (gain.value <= 0 and gain.high < 2 * least):
        return speaks(f"{what} fell by {gain}: nothing that matters", **evidence)
    return cannot_tell(f"{what} fell by {gain}: inside its noise", **evidence)


def stagnation(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG023: after an early improvement the loss stands still over the second half, though the rate is not low."""
    floor = saturated_level(ctx, t)
    if floor is not None:
        return silent("the loss is at its floor (DVG010)", **floor)
    if _frozen(ctx) and _moving(ctx, t) is None:
        return silent("nothing was trained at all (DVG008)")
    loss = ctx.train_series("loss", 20)
    whole = ends(loss.values, t["confidence"])
    half = len(loss) // 2
    late = ends(loss.values[half:], t["confidence"])
    if whole is None or late is None:
        raise Missing("too few rows of the training loss")
    start = ctx.start.value if ctx.start.known else float(loss.values[:3].mean())
    early = start - late.first
    rates = ctx.find("learning_rate", loss.split)
    low_rate = False
    if rates is not None and len(rates) >= 4:
        second = rates.values[len(rates) // 2 :]
        low_rate = bool(np.median(second) < t["stagnation_min_rate"] * rates.values.max())
    evidence: dict[str, Any] = {"change_in_second_half": late.delta, "fall_in_first_half": early, "low_rate": low_rate}
    fixed = ctx.maybe(lambda: ctx.fixed_series("loss", 4))
    if fixed is not None:
        middle = fixed.values[fixed.steps <= loss.steps[half]]
        if len(middle) and float(fixed.values[-1]) < 0.95 * float(middle[-1]):
            return silent("the held-out loss still fell in the second half", **evidence)
    if early <= max(2 * whole.sd / math.sqrt(whole.k), t["not_learning_share"] * abs(start)):
        return silent("no early improvement to stagnate after (see DVG009)", **evidence)
    bound = t["stagnation_share"] * max(early, 1e-9)
    if late.delta.low > -bound and late.delta.high < max(bound, t["divergence_min_share"] * abs(late.first)):
        if low_rate:
            return silent("the loss stands still because the learning rate has decayed", **evidence)
        if late.last < t["stagnation_min_level"] * abs(start):
            return silent("the loss stands still after most of it is gone", **evidence)
        return speaks("the loss stands still over the second half while the learning rate does not", **evidence)
    if late.delta.below:
        return silent("the loss still falls in the second half", **evidence)
    return cannot_tell("the change in the second half is inside its noise", **evidence)
