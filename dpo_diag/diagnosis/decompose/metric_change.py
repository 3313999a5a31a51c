"""A metric of the history at two steps, from the pairs that both steps measured, with the interval of the explanation.

The loss, rewards and shares are means over pairs, a cross-entropy is one over responses, an entropy a ratio of sums; a
perplexity's interval is that of its log-change, read as a factor on its first value; what is left is the metric table's
own formula over resampled pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.decompose.loss import loss_spec, summarise
from dpo_diag.diagnosis.decompose.perplexity import perplexity_intervals
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import REFERENCE, FloatArray, PairRows, Step, two_steps
from dpo_diag.records import metrics
from dpo_diag.records.metric_table import METRICS, Columns, Metric, Value, metric_of, pair_sums, side_of
from dpo_diag.records.schemas import SIDES
from dpo_diag.stats import Interval

ROUNDING = 1e-3
"""Share by which the pairs' own mean may differ from the logged one: beyond it the log holds another quantity."""


@dataclass(frozen=True)
class MetricChange:
    """A metric's value at the first step, at the second one with its interval, and its change with its own."""

    before: float
    after: Interval
    change: Interval


def metric_change(
    name: str, split: str, start: tuple[PairRows, Step], end: tuple[PairRows, int], logged: float, over: PairIntervals
) -> MetricChange | None:
    """The change of a history name (`ce/chosen`, `loss`) over the pairs that both steps measured.

    Args:
        start, end: whose rows, and at which step: of one run, or of two.
        logged: the value that the history holds at the end.

    Returns: None where no pair formula gives the metric, or fewer than two pairs are in common.
    """
    metric, side = metric_of(name), side_of(name)
    if metric is not None and metric.of_side is not None and side in SIDES:
        base = name.partition("/")[0]
        found = _of_side(base, str(side), split, start, end, over) if base in _OF_SUMS else None
        return found or _of_formula(metric, str(side), split, start, end, over)
    return _of_pairs(name, split, start, end, logged, over)


def _of_pairs(
    name: str, split: str, start: tuple[PairRows, Step], end: tuple[PairRows, int], logged: float, over: PairIntervals
) -> MetricChange | None:
    """A mean over pairs, where it is the one that was logged."""
    rows = end[0]
    if name not in ("loss", *_OF_RATIOS) or split not in rows.steps or split not in start[0].steps:
        return None
    spec = loss_spec(rows.run)[0]
    if spec is None or spec != start[0].run.info.loss:
        return None
    pairs = two_steps(start[0].at(split, start[1]), rows.at(split, end[1]))
    if name == "loss":
        found = summarise(spec, pairs)[1]
        ids, before, after = pairs.loc[found.index, "pair_id"], found["loss_from"], found["loss_to"]
    else:
        value = _OF_RATIOS[name]
        before, after = (value(pairs[f"a{w}"], pairs[f"b{w}"], spec.beta) for w in (0, 1))
        known = np.isfinite(pairs[["a0", "b0", "a1", "b1"]].to_numpy(dtype=np.float64)).all(axis=1)
        ids, before, after = pairs.loc[known, "pair_id"], before[known], after[known]
    if len(ids) < 2 or not math.isclose(float(after.mean()), logged, rel_tol=ROUNDING, abs_tol=ROUNDING):
        return None
    return MetricChange(float(before.mean()), over.mean(after, ids), over.mean(after - before, ids))


_OF_RATIOS: Mapping[str, Callable[[pd.Series, pd.Series, float], pd.Series]] = {
    "rewards/chosen": lambda a, b, beta: beta * a,
    "rewards/rejected": lambda a, b, beta: beta * b,
    "rewards/margins": lambda a, b, beta: beta * (a - b),
    "rewards/accuracies": lambda a, b, beta: (a > b).astype(float),
    "pairs/both_fell": lambda a, b, beta: ((a < 0) & (b < 0)).astype(float),
    "pairs/chosen_fell": lambda a, b, beta: (a < 0).astype(float),
}
"""History name -> its value for each pair, from the log-ratios to the reference and beta."""


def _of_side(
    name: str, side: str, split: str, start: tuple[PairRows, Step], end: tuple[PairRows, int], over: PairIntervals
) -> MetricChange | None:
    """A likelihood of one side, from the frames that the explanation reads."""
    if any(split not in rows.steps for rows in (start[0], end[0])):
        return None
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


def _of_formula(
    metric: Metric, side: str, split: str, start: tuple[PairRows, Step], end: tuple[PairRows, int], over: PairIntervals
) -> MetricChange | None:
    """Any other metric of one side (bits per byte, a plugin's): its formula over resampled pairs."""
    formula = metric.of_side
    before, after = (_raw(rows, step, split) for rows, step in (start, end))
    common = np.intersect1d(before["pair_id"], after["pair_id"])
    if formula is None or len(common) < 2:
        return None
    old, new = (_columns(rows[rows["pair_id"].isin(common)], side) for rows in (before, after))
    if not formula(old) or not formula(new):
        return None
    at_start, at_end, ids = _resampled(formula, old), _resampled(formula, new), list(common)
    with np.errstate(all="ignore"):
        value = over.of_statistic(at_end, ids)
        change = over.of_statistic(lambda counts: at_end(counts) - at_start(counts), ids)
    return MetricChange(value.value - change.value, value, change) if math.isfinite(change.value) else None


def _resampled(
    formula: Callable[[Columns], Value | None] | None, columns: Columns
) -> Callable[[FloatArray], FloatArray]:
    """(draws, pairs) counts -> the metric of each resample, shape (draws,)."""

    def drawn(counts: FloatArray) -> FloatArray:
        resamples = ({c: np.repeat(v, count) for c, v in columns.items()} for count in counts.astype(np.int64))
        return np.array([value.value for r in resamples if formula is not None and (value := formula(r))])

    return drawn


def _raw(rows: PairRows, step: Step, split: str) -> pd.DataFrame:
    steps, role = (None, "ref") if step == REFERENCE else ([int(step)], "policy")
    return rows.run.read("pairs", steps=steps, splits=[split], roles=[role]).sort_values("pair_id")


def _columns(rows: pd.DataFrame, side: str) -> Columns:
    sums = pair_sums(rows).policy
    return {name: values[SIDES.index(side)] for name, values in sums.items()}
