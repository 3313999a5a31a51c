"""Does it train at all, and how does the loss end: DVG008, 009, 010, 016, 020, 022, 023."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats as st

from dpo_diag.divergence.checks.base import Missing, Outcome, Thresholds, cannot_tell, silent, speaks
from dpo_diag.divergence.checks.context import CheckContext, Series
from dpo_diag.divergence.checks.stats import Interval, ends, mean_interval, noise_sd


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
        return cannot_tell("too few evaluations and no training rows", **evidence) if len(fixed or ()) < 4 else speaks(
            f"the loss of {fixed.split if fixed else '?'} did not fall over {len(fixed or ())} evaluations", **evidence
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


def spikes(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG016: single rows of the training loss far above what came before and after (median and MAD)."""
    loss = ctx.train_series("loss", 10)
    found = spike_rows(loss.values, t)
    evidence: dict[str, Any] = {
        "rows": len(loss), "steps": loss.steps[found][:20], "losses": loss.values[found][:20], "count": len(found)
    }  # fmt: skip
    grads = ctx.find("grad_norm", loss.split)
    if grads is not None and len(found):
        at = np.isin(grads.steps, loss.steps[found])
        evidence["grad_norm_there"] = grads.values[at][:20]
        evidence["median_grad_norm"] = float(np.median(grads.values))
    if len(found):
        where = ", ".join(f"{s:.0f}" for s in loss.steps[found][:5])
        return speaks(f"the loss spikes at {len(found)} of {len(loss)} rows (steps {where})", **evidence)
    return silent("no row stands out from its neighbours beyond the noise", **evidence)


def spike_rows(values: np.ndarray, t: Thresholds) -> np.ndarray:
    """Indices of rows above the medians of both their neighbourhoods by `spike_mads` robust deviations.

    One-sided and two-neighboured: a loss that simply falls fast stands above what follows but not above what came
    before; a step down at an epoch's end likewise. The scale is the larger of MAD and the upper tail's own quantiles,
    because batch losses are skewed; for long logs the multiple grows with the extreme expected of as many rows.
    """
    x = np.asarray(values, dtype=np.float64)
    w = int(t["spike_window"])
    if x.size < 2 * w:
        w = max(3, x.size // 3)
    before = np.full(x.size, np.nan)
    after = np.full(x.size, np.nan)
    for i in range(x.size):
        if i >= 2:
            before[i] = np.median(x[max(0, i - w) : i])
        if i + 2 < x.size:
            after[i] = np.median(x[i + 1 : i + 1 + w])
    near = np.array([np.median(np.delete(x[max(0, i - w) : i + w + 1], min(i, w))) for i in range(x.size)])
    residual = x - near
    centre = float(np.median(residual))
    mad = 1.4826 * float(np.median(np.abs(residual - centre)))
    upper = float(np.quantile(residual, 0.9) - centre) / 1.2816
    # The noise of a loss shrinks with it: a row is judged by the noise around it too, not by a later calm alone.
    wide = 3 * w
    local = np.array([
        np.median(np.abs(np.delete(residual[max(0, i - wide) : i + wide + 1], min(i, wide)))) for i in range(x.size)
    ])  # fmt: skip
    scale = np.maximum(max(mad, upper), 1.4826 * local)
    extreme = float(st.norm.ppf(1 - 0.01 / x.size))
    multiple = max(t["spike_mads"], 1.5 * extreme)
    baseline = np.fmax(before, after)
    level = max(abs(float(np.median(x))), abs(float(np.median(x[:3]))))
    jump = x - baseline
    return np.flatnonzero(
        (~np.isnan(before)) & (jump > multiple * scale) & (jump > t["spike_min_share"] * level) & (jump > 1e-6)
    )


def diverged(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG020: the training loss ends well above where it started, climbed back from its minimum, or is NaN."""
    raw = None
    for split in ctx.train_splits:
        raw = ctx.maybe(lambda split=split: ctx.series("loss", split))  # type: ignore[misc]
        if raw is not None:
            break
    if raw is None:
        raise Missing("no loss of the training batches is logged")
    tail = raw.values[-max(3, len(raw) // 10) :]
    if len(raw) >= 6 and not np.isfinite(tail).any():
        return speaks("the loss is not finite at the end", steps=raw.steps[-len(tail) :], severity="error")
    loss = raw.finite
    trend = ends(loss.values, t["confidence"])
    if trend is None:
        raise Missing("fewer than six finite losses")
    start = ctx.start.value if ctx.start.known else trend.first
    evidence: dict[str, Any] = {"first": trend.first, "last": trend.last, "change": trend.delta, "start": start}
    rise = max(t["divergence_min_share"] * abs(trend.first), 1e-3)
    if trend.delta.above and trend.delta.value > rise and trend.last > start:
        return speaks(f"the loss rose from {trend.first:.3g} to {trend.last:.3g}", **evidence)
    began = abs(float(loss.values[0]) - start) <= 0.05 * abs(start)
    if ctx.start.known and began and trend.last_level.low > start + rise and trend.last > 1.3 * abs(start):
        return speaks(f"the loss left its start ({start:.3g}) and ends at {trend.last_level}", **evidence)
    k = max(3, len(loss) // 8)
    if len(loss) >= 4 * k:
        rolling = np.convolve(loss.values, np.ones(k) / k, mode="valid")
        low = int(rolling[: len(rolling) - k].argmin()) if len(rolling) > k else 0
        windows = len(loss) / k
        z = float(st.norm.ppf(1 - (1 - t["confidence"]) / (2 * windows)))
        up, half = float(rolling[-1] - rolling[low]), z * trend.sd * math.sqrt(2 / k)
        fallen = float(rolling[0] - rolling[low])
        evidence |= {"minimum": rolling[low], "minimum_step": loss.steps[low + k - 1], "rise_from_minimum": up}
        if up > half and up > rise and up > t["divergence_min_share_of_fall"] * fallen:
            return speaks(
                f"the loss climbed back from {rolling[low]:.3g} (step {loss.steps[low + k - 1]:.0f}) to "
                f"{rolling[-1]:.3g}",
                **evidence,
            )
    return silent("the loss does not end above where it was", **evidence)


def overfit(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG022: from some step on the held-out loss rises while the training loss goes on falling."""
    train = ctx.maybe(lambda: ctx.train_series("loss", 6))
    pairs = ctx.maybe(ctx.pair_split)
    if pairs is not None and not is_training_probe(pairs):
        steps = ctx.pair_steps()
        losses = [ctx.pair_loss(ctx.at(s)) for s in steps]
        if not all(np.isfinite(values).any() for values in losses):
            raise Missing("some evaluation has no finite pair loss")
        means = [float(np.nanmean(values)) for values in losses]
        best = int(np.argmin(means))
        before, after = ctx.change(steps[best], steps[-1])
        confidence = 1 - (1 - t["confidence"]) / max(1, len(steps) - 1)
        rise = mean_interval(ctx.pair_loss(after) - ctx.pair_loss(before), confidence)
        evidence: dict[str, Any] = {
            "split": pairs, "best_step": steps[best], "loss_at_best": means[best], "last_loss": means[-1], "rise": rise,
        }  # fmt: skip
        least = _least_rise(ctx, means[best], t)
        if best < len(steps) - 1 and rise.value >= least and not rise.above:
            return cannot_tell(f"the held-out loss rose by {rise} from its minimum: inside the noise", **evidence)
        if best == len(steps) - 1 or not rise.above or rise.value < least:
            return silent("the held-out loss does not rise from its minimum beyond noise", **evidence)
        return _onset(ctx, train, float(steps[best]), evidence)
    fixed = ctx.fixed_series("loss", 3)
    v = fixed.values
    best = int(v.argmin())
    up, noise = float(v[-1] - v[best]), noise_sd(v) if len(v) >= 8 else 0.0
    evidence = {"split": fixed.split, "best_step": fixed.steps[best], "loss_at_best": v[best], "last_loss": v[-1],
                "evaluations": len(v)}  # fmt: skip
    if best == len(v) - 1 or up < max(_least_rise(ctx, float(v[best]), t), 3 * noise):
        return silent("the held-out loss ends at its minimum, or no more than noise above it", **evidence)
    if len(v) - 1 - best < 2 and up < 2 * _least_rise(ctx, float(v[best]), t):
        return cannot_tell("only the last evaluation lies above the minimum", **evidence)
    return _onset(ctx, train, float(fixed.steps[best]), evidence)


def is_training_probe(split: str) -> bool:
    """A fixed set drawn from the training pairs: its loss cannot show overfitting."""
    return "train" in split or "seen" in split.replace("unseen", "")


def _least_rise(ctx: CheckContext, best: float, t: Thresholds) -> float:
    start = ctx.start.value if math.isfinite(ctx.start.value) else abs(best)
    return max(t["overfit_min_share"] * abs(best), 0.1 * t["overfit_min_share"] * start)


def _onset(ctx: CheckContext, train: Series | None, step: float, evidence: dict[str, Any]) -> Outcome:
    """Overfitting, unless the training loss rises from that step on as well."""
    if train is not None:
        before, after = train.values[train.steps <= step], train.values[train.steps > step]
        if len(before) < 3:
            # The minimum stands at the very start: compare with the loss's own start, or with the first rows.
            before = np.full(3, ctx.start.value) if ctx.start.known else train.values[:3]
        if len(after) >= 3:
            k = max(3, len(before) // 4)
            evidence["train_loss"] = [float(before[-k:].mean()), float(after[-max(3, len(after) // 4) :].mean())]
            noise = noise_sd(train.values) * math.sqrt(2 / 3)
            if evidence["train_loss"][1] > evidence["train_loss"][0] + 2 * noise:
                return silent("held-out and training loss rise together: divergence, not overfitting", **evidence)
    return speaks(
        f"the held-out loss rises from {evidence['loss_at_best']:.4g} (step {step:.0f}) to "
        f"{evidence['last_loss']:.4g}",
        **evidence,
    )


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
