"""How the chosen side changed, from the best source that a run has: pairs, a fixed set's means, training batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dpo_diag.diagnosis.checks.shared.check import WORST, Missing, ratio
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.logged import Series
from dpo_diag.diagnosis.checks.shared.pairs import finite_sums
from dpo_diag.diagnosis.pair_rows import REFERENCE, step_name
from dpo_diag.records.metrics import quadrants
from dpo_diag.stats import FloatArray, Interval, ends, few_rows_level, t_interval
from dpo_diag.text import by
from dpo_diag.thresholds import Thresholds

READS = (
    "confidence", "displacement_min_nats", "displacement_min_reward", "displacement_min_nats_per_token",
    "displacement_min_share_of_margin", "displacement_min_relative", "few_rows_factor",
)  # fmt: skip
"""Thresholds that this module reads."""
EVIDENCE: Mapping[str, str] = {
    "source": "what the numbers come from: pairs, means of a split, or training batches",
    "window": "what is compared: reference, first or best step, to the last",
    "steps": "first and last step of that window; ref for the reference",
    "unit": "nats (per response), reward (beta times nats), or nats_per_token",
    "chosen_change": "change of the chosen log-prob, in `unit`, with its interval; a fixed set's mean has none",
    "margin_gain": "change of chosen minus rejected, in `unit`; null where it is not recorded",
    "relative_rise_of_chosen_nll": "rise of chosen's negative log-prob as a share of its start",
    "from_best": "whether that window begins where chosen was likeliest",
    "material": "whether it is a fall that matters, beyond its noise",
    "loss_fell": "whether the loss fell over that window; null where it is not known",
    "loss": "pairs: mean pair loss at both ends of the window",
    "loss_is": "pairs: which loss that is",
    "quadrants": "pairs: shares of pairs by the signs of the changes of chosen and rejected",
    "pairs_that_fell_most": "pair_ids with the largest falls of chosen",
    "series": "means: the metric that was read",
    "note": "what the numbers do not allow",
    "batch_sd": "training batches: the noise of one logged row, in `unit`",
    "rows": "training batches: logged rows",
}
ENDS_OF_WINDOW = 8
"""A level at one end of a window of rows is the mean of an eighth of them."""
BEST = "best to last"
LEAST_WINDOW = 6
"""Rows of the sliding window whose best position is compared with the last one."""


@dataclass(frozen=True)
class ChosenChange:
    """A change of the chosen log-prob over a window.

    Attributes:
        unit: nats | reward | nats_per_token, of `delta` and `gain`.
        gain: change of the margin over the window; NaN if unknown.
        relative: rise of the chosen responses' negative log-prob as a share of its start; NaN if unknown.
        loss_fell: None if unknown.
        few: too few training rows to know their noise: only a fall of `few_rows_factor` times the least counts.
    """

    source: str
    window: str
    from_step: float | str
    to_step: float
    unit: str
    delta: Interval
    gain: float
    relative: float
    loss_fell: bool | None
    step_word: str = "step"
    more: Mapping[str, Any] = field(default_factory=dict)
    few: bool = False

    def material(self, t: Thresholds) -> bool:
        """Whether it is beyond the smallest fall that matters, whatever the noise."""
        fall = -self.delta.value
        if not fall >= t[f"displacement_min_{self.unit}"] * (t["few_rows_factor"] if self.few else 1.0):
            return False
        # Where the margin gained nothing, nothing makes up for the fall.
        by_gain = fall >= t["displacement_min_share_of_margin"] * max(self.gain, 0.0)  # False where it is NaN
        by_level = self.relative >= t["displacement_min_relative"]
        return by_gain or by_level or (math.isnan(self.gain) and math.isnan(self.relative))

    @property
    def stretch(self) -> str:
        """ "from the reference to step 80", "best to last, steps 20 to 80"."""
        start, _, end = self.window.partition(" to ")
        if self.from_step == REFERENCE or start == "reference":
            whose = "" if end == "last" else f"the {end}, "
            return f"from {step_name(REFERENCE)} to {whose}{self.step_word} {self.to_step:.0f}"
        return f"{self.window}, {self.step_word}s {self.from_step:.0f} to {self.to_step:.0f}"

    @property
    def in_words(self) -> str:
        """ "chosen log-prob fell by 2.03 nats per token", "chosen's implicit reward fell by 0.2"."""
        if self.unit == "reward":
            return f"chosen's implicit reward {by(self.delta.value)}"
        return f"chosen log-prob {by(self.delta.value)} {self.unit.replace('_', ' ')}"

    def evidence(self, t: Thresholds) -> dict[str, Any]:
        """As `EVIDENCE` says."""
        return {
            "source": self.source,
            "window": self.window,
            "steps": [self.from_step, self.to_step],
            "unit": self.unit,
            "chosen_change": self.delta,
            "margin_gain": self.gain,
            "relative_rise_of_chosen_nll": self.relative,
            "from_best": self.window == BEST,
            "material": self.material(t) and self.delta.below,
            "loss_fell": self.loss_fell,
            **self.more,
        }


def chosen_changes(ctx: CheckContext, t: Thresholds) -> list[ChosenChange]:
    """Changes of the chosen side from the best source: over the whole run, and from its best step where it had one.

    Raises:
        Missing: no source knows the chosen side.
    """
    of_pairs = ctx.maybe(_of_pairs, ctx, t)
    if of_pairs:
        return of_pairs
    for split in ctx.logged.fixed_splits:
        of_means = _of_fixed_set(ctx, split, t)
        if of_means:
            return of_means
    for split in ctx.logged.train_splits:
        of_batches = _of_training(ctx, split, t)
        if of_batches:
            return of_batches
    raise Missing("neither pairs nor rewards/chosen, logps/chosen or ce/chosen at enough steps")


def material_falls(ctx: CheckContext, t: Thresholds) -> list[ChosenChange]:
    """The changes that are falls, material and beyond their noise."""
    return [c for c in chosen_changes(ctx, t) if c.material(t) and c.delta.below]


# --- pairs ------------------------------------------------------------------------------------------------------------


def _of_pairs(ctx: CheckContext, t: Thresholds) -> list[ChosenChange]:
    """From where the comparison begins (see `FixedPairs.steps`), and from the best step."""
    pairs = ctx.pairs
    before, after = pairs.change()
    da, db = pairs.moved(before, after)
    first_loss, last_loss = (float(np.nanmean(pairs.losses(frame))) for frame in (before, after))
    whole = ChosenChange(
        source="pairs",
        window="reference to last" if pairs.from_reference else "first to last",
        from_step=pairs.steps[0],
        to_step=pairs.own_steps[-1],
        unit="nats",
        delta=t_interval(da, t["confidence"]),
        gain=float(np.mean(da - db)),
        relative=ratio(float(-da.mean()), float(-before["chosen_sum_logp"].mean())),
        loss_fell=_known_fall(ctx, last_loss < first_loss),
        more={
            "loss": [first_loss, last_loss],
            "loss_is": pairs.loss_name,
            "quadrants": quadrants(da, db)._asdict(),
            "pairs_that_fell_most": list(after.index[np.argsort(da)[:WORST]]),
        },
    )
    from_best = _of_pairs_from_best(ctx, before.index, t)
    return [whole] if from_best is None else [whole, from_best]


def _known_fall(ctx: CheckContext, fell: bool) -> bool | None:
    """Of an unknown loss the margins say whether it can have fallen, not that it did."""
    return None if fell and ctx.info.loss is None else fell


def _of_pairs_from_best(ctx: CheckContext, pair_ids: Any, t: Thresholds) -> ChosenChange | None:
    """From the step where chosen stood highest; None where that is the first or the last."""
    pairs, steps = ctx.pairs, ctx.pairs.steps
    frames = [pairs.at(step) for step in steps]
    for frame in frames:
        pair_ids = pair_ids.intersection(frame.index[finite_sums(frame)])
    if len(pair_ids) < 3 or len(steps) < 3:
        return None
    chosen = np.array([frame.loc[pair_ids, "chosen_sum_logp"].to_numpy() for frame in frames])
    best = int(chosen.mean(axis=1).argmax())
    if best in (0, len(steps) - 1):
        return None
    # The best of k steps is chosen by looking: Bonferroni over the k - 1 steps it was chosen from.
    level = 1 - (1 - t["confidence"]) / (len(steps) - 1)
    at_best, at_last = frames[best].loc[pair_ids], frames[-1].loc[pair_ids]
    a0, b0 = pairs.ratios(at_best)
    a1, b1 = pairs.ratios(at_last)
    losses = [float(np.nanmean(pairs.losses(frame))) for frame in (at_best, at_last)]
    fall = chosen[best] - chosen[-1]
    return ChosenChange(
        source="pairs",
        window=BEST,
        from_step=steps[best],
        to_step=pairs.own_steps[-1],
        unit="nats",
        delta=t_interval(-fall, level),
        gain=float(np.mean((a1 - b1) - (a0 - b0))),
        relative=ratio(float(fall.mean()), float(-chosen[best].mean())),
        loss_fell=_known_fall(ctx, losses[1] < losses[0]),
        more={"loss": losses, "quadrants": quadrants(a1 - a0, b1 - b0)._asdict()},
    )


# --- means ------------------------------------------------------------------------------------------------------------


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


def _from_zero(ctx: CheckContext, series: ChosenSeries, t: Thresholds) -> bool:
    """Whether a window begins at 0: rewards are 0 at the reference, measured or not. A run with a wrong reference is
    measured from its own start, and so is a stretch of a run."""
    return series.unit == "reward" and ctx.window.first is None and not ctx.wrong_reference(t)


def _of_fixed_set(ctx: CheckContext, split: str, t: Thresholds) -> list[ChosenChange]:
    """Means of a fixed set: exact for that set, so the interval is the point; no statement beyond the set."""
    series = chosen_series(ctx, split)
    if series is None or len(series.values) < 2:
        return []
    values, steps = series.values, series.steps
    from_zero = _from_zero(ctx, series, t)
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


def _of_training(ctx: CheckContext, split: str, t: Thresholds) -> list[ChosenChange]:
    series = chosen_series(ctx, split)
    trend = None if series is None else ends(series.values, t["confidence"])
    if series is None or trend is None:
        return [] if series is None else _of_few_rows(ctx, split, series, t)
    from_zero = _from_zero(ctx, series, t)
    low, high = float(series.steps[0]), float(series.steps[-1])
    is_reward = series.unit == "reward"
    whole = ChosenChange(
        source="training batches",
        window="reference to last quarter" if from_zero else "first to last quarter",
        from_step=low,
        to_step=high,
        unit=series.unit,
        delta=trend.last_level if from_zero else trend.delta,
        gain=_gain(ctx, split, series.unit, low, high, from_zero),
        relative=math.nan if is_reward else ratio(-trend.delta.value, abs(trend.first)),
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
    from_zero, half = _from_zero(ctx, series, t), len(series.values) // 2
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
