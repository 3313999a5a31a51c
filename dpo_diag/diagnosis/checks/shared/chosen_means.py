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
from dpo_diag.ends import LEAST_ROWS, REFERENCE_IS, ends_of
from dpo_diag.stats import FloatArray, Interval, corrected_for, exactly, no_interval, t_p_value, t_quantile
from dpo_diag.thresholds import Thresholds


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


def _loss_fell(ctx: CheckContext, split: str, low: float, high: float, t: Thresholds) -> bool | None:
    """Whether it fell over a window, of batches beyond their noise or by what matters; None where it is not known."""
    loss = ctx.logged.find("loss", split, 2)
    ends = None if loss is None else loss.between(low, high, t["confidence"])
    if loss is None or ends is None or not math.isfinite(ends.start):
        return None
    known = ctx.known_start(t) if low <= loss.steps[0] else None
    begin = ends.start if known is None else max(ends.start, known)
    fall = begin - ends.end
    if loss.fixed or ends.rows < LEAST_ROWS:
        return fall > 0
    change = ends.change if begin == ends.start else ends.level.shifted(-begin)
    return change.below or fall >= t["not_learning_least"]


def _gain(ctx: CheckContext, split: str, unit: str, low: float, high: float, from_zero: bool) -> float:
    """Change of the margin over a window, in the unit of the chosen side; NaN if unknown."""
    if unit == "reward":
        margins = ctx.logged.find("rewards/margins", split)
        if margins is None:
            return math.nan
    else:
        frame = ctx.logged.together(["logps/chosen", "logps/rejected"], split)
        if frame is None:
            return math.nan
        steps, values = frame.index.to_numpy(dtype=np.float64), (frame.iloc[:, 0] - frame.iloc[:, 1]).to_numpy()
        margins = Series("margin", split, steps, values, ctx.run.role(split) != "train")
    ends = margins.between(low, high)
    return ends.end if from_zero else ends.change.value


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
                delta=exactly(delta),
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
    if series is None or len(series.values) < LEAST_ROWS:
        return [] if series is None else _of_few_rows(ctx, split, series, t)
    trend = ends_of(series.values, level=t["confidence"])
    from_zero = series.unit == "reward" and ctx.rewards_from_zero(t)
    low, high = float(series.steps[0]), float(series.steps[-1])
    is_reward = series.unit == "reward"
    delta = trend.level if from_zero else trend.change
    relative = ratio(-trend.change.value, abs(trend.start))
    if is_reward:
        # Beside a collapse a fall is a small share of the margin, and still a fall of the log-prob itself.
        relative = logged_levels(ctx, split, "chosen", delta, t).relative or math.nan
    whole = ChosenChange(
        source="training batches",
        window="reference to last" if from_zero else "first to last",
        ends_are=(REFERENCE_IS if from_zero else trend.start_is, trend.end_is),
        from_step=low,
        to_step=high,
        unit=series.unit,
        delta=delta,
        gain=_gain(ctx, split, series.unit, low, high, from_zero),
        relative=relative,
        loss_fell=_loss_fell(ctx, split, low, high, t),
        step_word=ctx.info.step_word,
        more={"series": series.name, "batch_sd": trend.sd, "rows": trend.rows},
    )
    values, k = series.values, max(int(t["sliding_min_rows"]), int(len(series.values) * t["sliding_share"]))
    if len(values) < t["sliding_min_windows"] * k:
        return [whole]
    rolling = rolling_mean(values, k)
    best = int(rolling.argmax())
    if not 0 < best < len(rolling) - k:
        return [whole]
    error, degrees = trend.sd * math.sqrt(2 / k), max(2, len(values) // 2)
    half = t_quantile(t["confidence"], degrees) * error
    drop, since = float(rolling[-1] - rolling[best]), float(series.steps[best])
    from_best = ChosenChange(
        source="training batches",
        window=BEST,
        from_step=since,
        to_step=high,
        unit=series.unit,
        delta=Interval(drop, drop - half, drop + half, len(values), trend.change.method, t["confidence"]),
        # The best window is chosen by looking at every row: Bonferroni over the rows.
        p=corrected_for(t_p_value(drop, error, degrees), len(values)),
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
    if len(series.values) < 2:
        return []
    ends, from_zero = ends_of(series.values), series.unit == "reward" and ctx.rewards_from_zero(t)
    delta = ends.level if from_zero else ends.level.shifted(-ends.start)
    low, high = float(series.steps[0]), float(series.steps[-1])
    if series.unit != "reward":
        delta = no_interval(delta.value, delta.n, math.nan)
    return [
        ChosenChange(
            source="training batches",
            window="reference to last" if from_zero else "first to last",
            ends_are=(REFERENCE_IS if from_zero else ends.start_is, ends.end_is),
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
        )
    ]


def rolling_mean(values: FloatArray, k: int) -> FloatArray:
    """Means of every k neighbouring rows, shape (rows - k + 1,)."""
    means: FloatArray = np.convolve(values, np.ones(k) / k, mode="valid")
    return means


def level_of(series: Series, t: Thresholds) -> Interval | None:
    """The level at the end: a fixed set's last value, exact for it; else as `Ends` has it; None for one row."""
    if series.fixed:
        return exactly(float(series.values[-1]))
    return ends_of(series.values, level=t["confidence"]).level if len(series) > 1 else None
