"""A metric of the history at two steps, from the pairs that both steps measured, with the interval of the explanation.

The loss, rewards and shares are means over pairs, a cross-entropy is one over responses, an entropy a ratio of sums; a
perplexity's interval is that of its log-change, read as a factor on its first value; what is left is the metric table's
own formula over resampled pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.decompose.perplexity import perplexity_intervals
from dpo_diag.diagnosis.logged import sums_at
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import REFERENCE, FloatArray, PairRows, Step, two_steps
from dpo_diag.records import metrics
from dpo_diag.records.metric_table import METRICS, Columns, Value, metric_of, of_each_pair, side_of
from dpo_diag.records.schemas import SIDES
from dpo_diag.stats import Interval


@dataclass(frozen=True)
class MetricChange:
    """A metric's value at the first step, at the second one with its interval, and its change with its own."""

    before: float
    after: Interval
    change: Interval


def metric_change(
    name: str, split: str, start: tuple[PairRows, Step], end: tuple[PairRows, int], over: PairIntervals
) -> MetricChange | None:
    """The change of a history name (`ce/chosen`, `loss`) over the pairs that both steps measured.

    Args:
        start, end: whose rows, and at which step: of one run, or of two.

    Returns: None where no formula of pairs gives the metric, or fewer than two pairs are in common.
    """
    if any(split not in rows.steps for rows, _ in (start, end)):
        return None
    base, side = name.partition("/")[0], side_of(name)
    if side in SIDES and base in _OF_SUMS:
        return _of_side(base, str(side), split, start, end, over)
    return _of_table(name, split, start, end, over)


def _of_side(
    name: str, side: str, split: str, start: tuple[PairRows, Step], end: tuple[PairRows, int], over: PairIntervals
) -> MetricChange | None:
    """A likelihood of one side, from the frames that the explanation reads."""
    pairs = two_steps(start[0].at(split, start[1]), end[0].at(split, end[1]))
    value, n = (f"{side}_{c}" for c in (_SUMS.get(name, "sum_logp"), "n_tokens"))
    if f"{value}_0" not in pairs:
        return None
    v0, v1, n0, n1 = (pairs[f"{c}_{w}"].to_numpy(dtype=np.float64) for c in (value, n) for w in (0, 1))
    if name == "top1":  # a share of the response's tokens
        v0, v1 = v0 * n0, v1 * n1
    keep = np.isfinite(v0) & np.isfinite(v1) & (n0 > 0) & (n1 > 0)
    if keep.sum() < 2:
        return None
    ids, (v0, v1, n0, n1) = pairs.loc[keep, "pair_id"], (x[keep] for x in (v0, v1, n0, n1))
    if name in ("ce", "logps"):
        old, new = (v0, v1) if name == "logps" else (metrics.ce(v0, n0), metrics.ce(v1, n1))
        return MetricChange(float(old.mean()), over.mean(new, ids), over.mean(new - old, ids))
    if name in metrics.PERPLEXITIES:
        return _of_perplexity(name, (v0, n0, v1, n1), ids, over)
    one = np.ones_like(n1)
    after = over.ratio_change(0 * one, one, v1, n1, ids)
    return MetricChange(float(v0.sum() / n0.sum()), after, over.ratio_change(v0, n0, v1, n1, ids))


_SUMS = {
    "entropy": "entropy_sum",
    "greedy_logp": "greedy_logp_sum",
    "top1": "top1",
    "logps": "loss_logp",
}
"""Metric of one side -> the column of its pairs' sums, where that is not the log-prob."""
_OF_SUMS = {"ce", *metrics.PERPLEXITIES, *_SUMS}


def _of_perplexity(
    name: str, sums: tuple[FloatArray, FloatArray, FloatArray, FloatArray], ids: pd.Series[str], over: PairIntervals
) -> MetricChange:
    log = perplexity_intervals(*sums, ids, over)[name]
    first, last = (metrics.safe_exp(metrics.PERPLEXITIES[name](*sums[i : i + 2])) for i in (0, 2))
    change = [first * math.expm1(x) for x in (log.value, log.low, log.high)]
    with np.errstate(over="ignore"):
        after = over.of_statistic(_resampled(METRICS[name].of_side, {"sum_logp": sums[2], "n_tokens": sums[3]}), ids)
    return MetricChange(first, replace(after, value=last), replace(log, value=change[0], low=change[1], high=change[2]))


def _of_table(
    name: str, split: str, start: tuple[PairRows, Step], end: tuple[PairRows, int], over: PairIntervals
) -> MetricChange | None:
    """By the metric table: a mean over pairs, or any other metric of one side (bits per byte, a plugin's)."""
    ids = [_both_sides(rows, split, step) for rows, step in (start, end)]
    common = ids[0].intersection(ids[1]).sort_values()
    if len(common) < 2:
        return None
    old, new = (sums_at(rows, split, step, common) for rows, step in (start, end))
    before, after = (of_each_pair(s, name, e[0].run.info.loss) for s, e in ((old, start), (new, end)))
    if before is not None and after is not None and before.shape == after.shape == common.shape:
        known = np.isfinite(before) & np.isfinite(after)
        if known.sum() < 2:
            return None
        before, after, kept = before[known], after[known], common[known]
        return MetricChange(float(before.mean()), over.mean(after, kept), over.mean(after - before, kept))
    metric, side = metric_of(name), side_of(name)
    if metric is None or metric.of_side is None or side not in SIDES:
        return None
    first, last = ({c: values[SIDES.index(str(side))] for c, values in s.policy.items()} for s in (old, new))
    if len(first["n_tokens"]) != len(common) or not metric.of_side(first) or not metric.of_side(last):
        return None
    at_start, at_end = _resampled(metric.of_side, first), _resampled(metric.of_side, last)
    with np.errstate(all="ignore"):
        value = over.of_statistic(at_end, common)
        change = over.of_statistic(lambda counts: at_end(counts) - at_start(counts), common)
    return MetricChange(value.value - change.value, value, change) if math.isfinite(change.value) else None


def _both_sides(rows: PairRows, split: str, step: Step) -> pd.Index[str]:
    """Ids of the pairs of which both sides were measured there."""
    at = rows.rows(split, rows.steps[split][-1] if step == REFERENCE else int(step))
    at = at if step != REFERENCE else at.loc[at["ref_sum_logp"].notna()]
    sides = at.groupby("pair_id", observed=True)["side"].nunique()
    both: pd.Index[str] = sides.index[sides == len(SIDES)].astype(str)
    return both


def _resampled(
    formula: Callable[[Columns], Value | None] | None, columns: Columns
) -> Callable[[FloatArray], FloatArray]:
    """(draws, pairs) counts -> the metric of each resample, shape (draws,)."""

    def drawn(counts: FloatArray) -> FloatArray:
        resamples = ({c: np.repeat(v, count) for c, v in columns.items()} for count in counts.astype(np.int64))
        return np.array([value.value for r in resamples if formula is not None and (value := formula(r))])

    return drawn
