"""How far the chosen side fell, from the best source that a run has: pairs, a fixed set's means, training batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks.base import Missing, Thresholds
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.series import Series
from dpo_diag.diagnosis.checks.stats import Interval, ends, mean_interval, ratio
from dpo_diag.records.metrics import quadrants


@dataclass(frozen=True)
class Fall:
    """A change of the chosen log-prob over a window in which the loss is also known.

    `delta` in `unit`; `gain`: change of the margin in the same unit over the window (NaN if unknown); `relative`: rise
    of the chosen responses' negative log-prob as a share of its start (NaN if unknown); `loss_fell`: None if unknown.
    """

    source: str
    window: str
    from_step: float
    to_step: float
    unit: str
    delta: Interval
    gain: float
    relative: float
    loss_fell: bool | None
    more: dict[str, Any] = field(default_factory=dict)

    def least(self, t: Thresholds) -> float:
        return t[f"displacement_min_{self.unit}"]

    def material(self, t: Thresholds) -> bool:
        """Beyond the smallest fall that matters, whatever the noise."""
        if not -self.delta.value >= self.least(t):
            return False
        by_gain = self.gain > 0 and -self.delta.value >= t["displacement_min_share_of_margin"] * self.gain
        by_level = self.relative >= t["displacement_min_relative"]
        return by_gain or by_level or (math.isnan(self.gain) and math.isnan(self.relative))

    def evidence(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "window": self.window,
            "steps": [self.from_step, self.to_step],
            "unit": self.unit,
            "chosen_change": self.delta,
            "margin_gain": self.gain,
            "relative_rise_of_chosen_nll": self.relative,
            **self.more,
        }


def _pair_falls(ctx: CheckContext, t: Thresholds) -> list[Fall]:
    """Falls against the reference (or the first step) and from the best step, over the pairs of a fixed set."""
    steps = ctx.pair_steps()
    before, after = ctx.change()
    frames = [ctx.at(s) for s in steps]
    common = before.index
    for frame in frames:
        common = common.intersection(frame[np.isfinite(frame[["s_c", "s_r"]]).all(axis=1)].index)
    falls = []
    a1, b1 = ctx.ratios(after)
    a0, b0 = ctx.ratios(before)
    referenced = after[["ref_c", "ref_r"]].notna().to_numpy().all() and ctx.from_step is None
    base_a, base_b = (np.zeros_like(a1), np.zeros_like(b1)) if referenced else (a0, b0)
    level = after["ref_c"].to_numpy() if referenced else before["s_c"].to_numpy()
    first_loss = float(np.nanmean(ctx.pair_loss(before)))
    last_loss = float(np.nanmean(ctx.pair_loss(after)))
    start = ctx.start.value if referenced and math.isfinite(ctx.start.value) else first_loss
    more = {
        "loss": [start if referenced else first_loss, last_loss],
        "loss_is": ctx.pair_loss_is,
        "quadrants": quadrants(a1 - base_a, b1 - base_b)._asdict(),
        "pairs_that_fell_most": list(after.index[np.argsort(a1 - base_a)[:5]]),
    }
    falls.append(
        Fall(
            "pairs", "reference to last" if referenced else "first to last", steps[0], steps[-1], "nats",
            mean_interval(a1 - base_a, t["confidence"]), float(np.mean((a1 - base_a) - (b1 - base_b))),
            ratio(float(-np.mean(a1 - base_a)), float(np.mean(-level))), last_loss < max(first_loss, start), more,
        )
    )  # fmt: skip
    if len(common) < 3 or len(steps) < 3:
        return falls
    chosen = np.array([f.loc[common, "s_c"].to_numpy() for f in frames])
    best = int(chosen.mean(axis=1).argmax())
    if best in (0, len(steps) - 1):
        return falls
    # The best of k steps is chosen by looking: Bonferroni over the k - 1 steps it was chosen from.
    confidence = 1 - (1 - t["confidence"]) / (len(steps) - 1)
    at_best, at_last = frames[best].loc[common], frames[-1].loc[common]
    ca, cb = ctx.ratios(at_best)
    la, lb = ctx.ratios(at_last)
    loss_best, loss_last = float(np.nanmean(ctx.pair_loss(at_best))), float(np.nanmean(ctx.pair_loss(at_last)))
    falls.append(
        Fall(
            "pairs", "best to last", steps[best], steps[-1], "nats",
            mean_interval(chosen[-1] - chosen[best], confidence), float(np.mean((la - lb) - (ca - cb))),
            ratio(float((chosen[best] - chosen[-1]).mean()), float(-chosen[best].mean())), loss_last < loss_best,
            {"loss": [loss_best, loss_last], "quadrants": quadrants(la - ca, lb - cb)._asdict()},
        )
    )  # fmt: skip
    return falls


def chosen_series(ctx: CheckContext, split: str) -> tuple[Series, str, float] | None:
    """The best series of the chosen side in a split, its unit and its sign (+1 for a log-prob, -1 for a CE)."""
    rewards = ctx.find("rewards/chosen", split)
    if rewards is not None and not ctx.reference_free:
        return rewards, "reward", 1.0
    logps = ctx.find("logps/chosen", split)
    if logps is not None:
        return logps, "nats_per_token" if ctx.mean_logps else "nats", 1.0
    ce = ctx.find("ce/chosen", split)
    if ce is not None:
        return ce, "nats_per_token", -1.0
    return None


def _loss_fell(ctx: CheckContext, split: str, low: float, high: float) -> bool | None:
    loss = ctx.find("loss", split)
    if loss is None or len(loss) < 2:
        return None
    k = max(1, len(loss) // 8)
    last = loss.values[loss.steps <= high][-k:].mean() if (loss.steps <= high).any() else math.nan
    before = loss.values[loss.steps >= low][:k].mean() if (loss.steps >= low).any() else math.nan
    if low <= loss.steps[0] and not ctx.reference_free and math.isfinite(ctx.start.value) and ctx.start.known:
        before = max(before, ctx.start.value)
    return bool(last < before) if math.isfinite(last) and math.isfinite(before) else None


def _gain(ctx: CheckContext, split: str, unit: str, low: float, high: float, from_zero: bool) -> float:
    """Change of the margin over a window, in the unit of the chosen side; NaN if unknown."""
    if unit == "reward":
        margins = ctx.find("rewards/margins", split)
        if margins is None:
            return math.nan
        values, steps = margins.values, margins.steps
    else:
        frame = ctx.wide_rows(["logps/chosen", "logps/rejected"], split)
        if frame is None:
            return math.nan
        values, steps = (frame.iloc[:, 0] - frame.iloc[:, 1]).to_numpy(), frame.index.to_numpy(dtype=np.float64)
    k = max(1, len(values) // 8)
    end = values[steps <= high][-k:]
    begin = values[steps >= low][:k]
    if not len(end) or not len(begin):
        return math.nan
    return float(end.mean() - (0.0 if from_zero else begin.mean()))


def _fixed_falls(ctx: CheckContext, split: str) -> list[Fall]:
    """Means of a fixed set: exact for that set, so the interval is the point; no statement beyond the set."""
    found = chosen_series(ctx, split)
    if found is None or len(found[0]) < 2:
        return []
    series, unit, sign = found
    values = sign * series.values
    from_zero = unit == "reward" and ctx.from_step is None
    falls = []
    for window in ("first", "best"):
        start = 0 if window == "first" else int(values.argmax())
        if window == "best" and start in (0, len(values) - 1):
            continue
        zero = window == "first" and from_zero
        delta = float(values[-1] - (0.0 if zero else values[start]))
        low, high = float(series.steps[start]), float(series.steps[-1])
        relative = math.nan if unit == "reward" else ratio(float(values[start] - values[-1]), float(abs(values[start])))
        falls.append(
            Fall(
                f"means of {split}", ("reference" if zero else window) + " to last", low, high, unit,
                Interval(delta, delta, delta, 1), _gain(ctx, split, unit, low, high, zero), relative,
                _loss_fell(ctx, split, low, high),
                {"series": series.name, "note": "exact for this set; means allow no interval beyond it"},
            )
        )  # fmt: skip
    return falls


def _train_falls(ctx: CheckContext, split: str, t: Thresholds) -> list[Fall]:
    found = chosen_series(ctx, split)
    if found is None:
        return []
    series, unit, sign = found
    values = sign * series.values
    trend = ends(values, t["confidence"])
    if trend is None:
        return []
    from_zero = unit == "reward" and ctx.from_step is None
    low, high = float(series.steps[0]), float(series.steps[-1])
    delta = trend.last_level if from_zero else trend.delta
    relative = math.nan if unit == "reward" else ratio(-trend.delta.value, abs(trend.first))
    falls = [
        Fall(
            "training batches", "reference to last quarter" if from_zero else "first to last quarter", low, high, unit,
            delta, _gain(ctx, split, unit, low, high, from_zero), relative, _loss_fell(ctx, split, low, high),
            {"series": series.name, "batch_sd": trend.sd, "rows": trend.n},
        )
    ]  # fmt: skip
    k = max(6, len(values) // 8)
    if len(values) >= 4 * k:
        rolling = np.convolve(values, np.ones(k) / k, mode="valid")
        best = int(rolling.argmax())
        if 0 < best < len(rolling) - k:
            # The best window is chosen by looking at every row: Bonferroni over the rows.
            wide = ends(values, 1 - (1 - t["confidence"]) / len(values))
            half = (wide.last_level.high - wide.last_level.value) * math.sqrt(wide.k / k * 2) if wide else math.inf
            drop = float(rolling[-1] - rolling[best])
            low = float(series.steps[best])
            falls.append(
                Fall(
                    "training batches", "best to last", low, high, unit,
                    Interval(drop, drop - half, drop + half, len(values)),
                    # The margin of the whole run: over a short window its own gain is mostly noise.
                    _gain(ctx, split, unit, float(series.steps[0]), high, from_zero),
                    math.nan if unit == "reward" else ratio(-drop, float(abs(rolling[best]))),
                    _loss_fell(ctx, split, low, high), {"series": series.name, "batch_sd": trend.sd},
                )
            )  # fmt: skip
    return falls


def chosen_falls(ctx: CheckContext, t: Thresholds) -> list[Fall]:
    """Changes of the chosen side from the best source this run has: pairs, a fixed set's means, training batches.

    Raises:
        Missing: no source knows the chosen side.
    """
    pairs = ctx.maybe(lambda: _pair_falls(ctx, t))
    if pairs:
        return pairs
    for split in ctx.fixed_splits:
        falls = _fixed_falls(ctx, split)
        if falls:
            return falls
    for split in ctx.train_splits:
        falls = _train_falls(ctx, split, t)
        if falls:
            return falls
    raise Missing("neither pairs nor rewards/chosen, logps/chosen or ce/chosen at enough steps")


def displaced(ctx: CheckContext, t: Thresholds) -> Fall | None:
    """The strongest material fall of chosen beyond its noise in a window in which the loss fell, or None."""
    found = [f for f in chosen_falls(ctx, t) if f.material(t) and f.delta.below and f.loss_fell is not False]
    return found[0] if found else None
