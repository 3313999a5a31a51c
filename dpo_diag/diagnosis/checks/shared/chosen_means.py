"""How the chosen side changed by logged means: of a fixed set, or of training batches."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dpo_diag.diagnosis.checks.shared.check import ratio
from dpo_diag.diagnosis.checks.shared.chosen_change import BEST, ChosenChange
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.levels import logged_levels
from dpo_diag.diagnosis.checks.shared.logged import Series
from dpo_diag.stats import FloatArray, Interval, ends, few_rows_level
from dpo_diag.thresholds import Thresholds

ENDS_OF_WINDOW = 8
"""A level at one end of a window of rows is the mean of an eighth of them."""
LEAST_WINDOW = 6
"""Rows of the sliding window whose best position is compared with the last one."""


class ChosenSeries(NamedTuple):
    """What a log holds of the chosen side: values in `unit`, higher is likelier."""

    name: str
    unit: str
    steps: FloatArray
    values: FloatArray


def chosen_series(ctx: CheckContext, split: str) -> ChosenSeries | None:
    """The best series of the chosen side in a split; rewards first: they lack the spread of the reference's logps."""
    rewards = None if ctx.reference_free else ctx.logged.find("rewards/chosen", split)
    if rewards is not None:
        return ChosenSeries(rewards.name, "reward", rewards.steps, rewards.values)
    logps = ctx.logged.find("logps/chosen", split)
    if logps is not None:
        return ChosenSeries(logps.name, "nats_per_token" if ctx.mean_logps else "nats", logps.steps, logps.values)
    ce = ctx.logged.find("ce/chosen", split)
    return None if ce is None else ChosenSeries(ce.name, "nats_per_token", ce.steps, -ce.values)


def _at_ends(steps: FloatArray, values: FloatArray, low: float, high: float) -> tuple[float, float]:
    """Levels at both ends of low..high; NaN where no row lies there."""
    k = max(1, len(values) // ENDS_OF_WINDOW)
    begin, end = values[steps >= low][:k], values[steps <= high][-k:]
    return (float(begin.mean()) if len(begin) else math.nan), (float(end.mean()) if len(end) else math.nan)


def _loss_fell(ctx: CheckContext, split: str, low: float, high: float, t: Thresholds) -> bool | None:
    loss = ctx.logged.find("loss", split, 2)
    if loss is None:
        return None
    begin, end = _at_ends(loss.steps, loss.values, low, high)
    start = ctx.known_start(t)
    if start is not None and low <= loss.steps[0]:
        begin = max(begin, start)
    return bool(end < begin) if math.isfinite(end) and math.isfinite(begin) else None


def _gain(ctx: CheckContext, split: str, unit: str, low: float, high: float, from_zero: bool) -> float:
    """Change of the margin over a window, in the unit of the chosen side; NaN if unknown."""
    if unit == "reward":
        margins = ctx.logged.find("rewards/margins", split)
        if margins is None:
            return math.nan
        steps, values = margins.steps, margins.values
    else:
        frame = ctx.logged.together(["logps/chosen", "logps/rejected"], split)
        if frame is None:
            return math.nan
        steps, values = frame.index.to_numpy(dtype=np.float64), (frame.iloc[:, 0] - frame.iloc[:, 1]).to_numpy()
    begin, end = _at_ends(steps, values, low, high)
    if math.isnan(begin):
        return math.nan
    return end if from_zero else end - begin


def of_fixed_set(ctx: CheckContext, split: str, t: Thresholds) -> list[ChosenChange]:
    """Means of a fixed set: exact for that set, so the interval is the point; no statement beyond the set."""
    series = chosen_series(ctx, split)
    if series is None or len(series.values) < 2:
        return []
    values, steps = series.values, series.steps
    from_zero = series.unit == "reward" and ctx.rewards_from_zero(t)
    changes = []
    for window, start in (("first", 0), ("best", int(values.argmax()))):
        if window == "best" and start in (0, len(values) - 1):
            continue
        zero = window == "first" and from_zero
        delta = float(values[-1] - (0.0 if zero else values[start]))
        low, high = float(steps[start]), float(steps[-1])
        fall = float(values[start] - values[-1])
        changes.append(
            ChosenChange(
                source=f"means of {split}",
                window=BEST if window == "best" else f"{'reference' if zero else window} to last",
                from_step=low,
                to_step=high,
                unit=series.unit,
                delta=Interval(delta, delta, delta, 1),
                gain=_gain(ctx, split, series.unit, low, high, zero),
                relative=math.nan if series.unit == "reward" else ratio(fall, float(abs(values[start]))),
                loss_fell=_loss_fell(ctx, split, low, high, t),
                step_word=ctx.info.step_word,
                more={"series": series.name, "note": "exact for this set; means allow no interval beyond it"},
            )
        )
    return changes


def of_training(ctx: CheckContext, split: str, t: Thresholds) -> list[ChosenChange]:
    series = chosen_series(ctx, split)
    trend = None if series is None else ends(series.values, t["confidence"])
    if series is None or trend is None:
        return [] if series is None else _of_few_rows(ctx, split, series, t)
    from_zero = series.unit == "reward" and ctx.rewards_from_zero(t)
    low, high = float(series.steps[0]), float(series.steps[-1])
    is_reward = series.unit == "reward"
    delta = trend.last_level if from_zero else trend.delta
    relative = ratio(-trend.delta.value, abs(trend.first))
    if is_reward:
        # Beside a collapse a fall is a small share of the margin, and still a fall of the log-prob itself.
        relative = logged_levels(ctx, split, "chosen", delta, t).relative or math.nan
    whole = ChosenChange(
        source="training batches",
        window="reference to last rows" if from_zero else "first to last rows",
        mean_of=(trend.k, trend.n),
        from_step=low,
        to_step=high,
        unit=series.unit,
        delta=delta,
        gain=_gain(ctx, split, series.unit, low, high, from_zero),
        relative=relative,
        loss_fell=_loss_fell(ctx, split, low, high, t),
        step_word=ctx.info.step_word,
        more={"series": series.name, "batch_sd": trend.sd, "rows": trend.n},
    )
    values, k = series.values, max(LEAST_WINDOW, len(series.values) // ENDS_OF_WINDOW)
    if len(values) < 4 * k:
        return [whole]
    rolling = rolling_mean(values, k)
    best = int(rolling.argmax())
    if not 0 < best < len(rolling) - k:
        return [whole]
    # The best window is chosen by looking at every row: Bonferroni over the rows.
    wide = ends(values, 1 - (1 - t["confidence"]) / len(values))
    half = (wide.last_level.high - wide.last_level.value) * math.sqrt(wide.k / k * 2) if wide else math.inf
    drop, since = float(rolling[-1] - rolling[best]), float(series.steps[best])
    from_best = ChosenChange(
        source="training batches",
        window=BEST,
        from_step=since,
        to_step=high,
        unit=series.unit,
        delta=Interval(drop, drop - half, drop + half, len(values)),
        # The margin of the whole run: over a short window its own gain is mostly noise.
        gain=_gain(ctx, split, series.unit, low, high, from_zero),
        relative=math.nan if is_reward else ratio(-drop, float(abs(rolling[best]))),
        loss_fell=_loss_fell(ctx, split, since, high, t),
        step_word=ctx.info.step_word,
        more={"series": series.name, "batch_sd": trend.sd},
    )
    return [whole, from_best]


def _of_few_rows(ctx: CheckContext, split: str, series: ChosenSeries, t: Thresholds) -> list[ChosenChange]:
    """Two to five training rows: the later half against the reference, or against the earlier half. Log-probs of
    batches that hold other pairs scatter by more than they move, so theirs has no interval."""
    level = few_rows_level(series.values)
    if level is None:
        return []
    from_zero, half = series.unit == "reward" and ctx.rewards_from_zero(t), len(series.values) // 2
    delta = level if from_zero else level.shifted(-float(series.values[:half].mean()))
    low, high = float(series.steps[0]), float(series.steps[-1])
    if series.unit != "reward":
        delta = Interval(delta.value, math.nan, math.nan, delta.n)
    return [
        ChosenChange(
            source="training batches",
            window="reference to last rows" if from_zero else "first to last rows",
            from_step=low,
            to_step=high,
            unit=series.unit,
            delta=delta,
            gain=_gain(ctx, split, series.unit, low, high, from_zero),
            relative=math.nan,
            loss_fell=_loss_fell(ctx, split, low, high, t),
            step_word=ctx.info.step_word,
            more={"series": series.name, "rows": len(series.values), "note": "too few rows to know their noise"},
            few=True,
            mean_of=(len(series.values) // 2, len(series.values)),
        )
    ]


def rolling_mean(values: FloatArray, k: int) -> FloatArray:
    """Means of every k neighbouring rows, shape (rows - k + 1,)."""
    means: FloatArray = np.convolve(values, np.ones(k) / k, mode="valid")
    return means


def level_of(series: Series, t: Thresholds) -> Interval | None:
    """The level at the end: a fixed set's last value, exact for it; else the last quarter's mean, or of few rows the
    later half's; None for one row."""
    if series.fixed:
        last = float(series.values[-1])
        return Interval(last, last, last, 1)
    trend = series.ends(t["confidence"])
    return few_rows_level(series.values) if trend is None else trend.last_level
