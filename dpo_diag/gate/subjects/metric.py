"""`metric: NAME`: a number of the run's history, with an interval where the records hold what it is made of."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.decompose.means import NAMES
from dpo_diag.diagnosis.evidence import SCORE, score_curves
from dpo_diag.diagnosis.logged import at_reference, metric_rows, sums_at
from dpo_diag.diagnosis.measure import enough
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, Step
from dpo_diag.ends import ends_of
from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import LIMITS, SUBJECTS, Ambiguous, Missing, Quantity, Rule, Subject, unknown_interval
from dpo_diag.losses import LossSpec
from dpo_diag.records.metric_table import METRICS, Columns, PairSums, metric_of, of_each_pair, side_of
from dpo_diag.records.schemas import SIDES
from dpo_diag.stats import FloatArray, Interval, bootstrap, mean_interval, proportion, t_interval
from dpo_diag.text import some


def _judge(judged: JudgedRun, rule: Rule) -> Quantity:
    name = str(rule["metric"])
    rows = _rows(judged.pairs, name, rule.get("split"))
    now, split = rows.iloc[-1], str(rows.iloc[-1]["split"])
    theirs = rows if judged.same_run else _rows(judged.other_pairs, name, split)
    step, old, n0 = _at_baseline(judged, theirs, name, split)
    value, n1 = float(now["value"]), now["weight"]
    if not math.isfinite(value):
        raise Missing(f"the metric is {value} at step {int(now['step'])}")
    if judged.run.role(split) == "train" and name in NAMES and len(rows) > 1:
        return _of_batches(judged, rows, name, old, theirs)
    paired = _paired(judged, name, split, step, int(now["step"]))
    if paired is not None:
        return paired
    if name.startswith(SCORE) and 0 <= value <= 1 and 0 <= old <= 1 and n0 >= 1 and n1 >= 1:
        share = enough(proportion(value * n1, float(n1)), judged.limits)
        return Quantity(share, old, _score_change(judged, name, split, int(step), int(now["step"])))
    return Quantity(
        unknown_interval(value, 0 if pd.isna(n1) else int(n1)), old, unknown_interval(value - old)
    )  # fmt: skip


def _score_change(judged: JudgedRun, name: str, split: str, from_step: int, to_step: int) -> Interval | None:
    """The change of a score as the explanation gives it: paired where the answers are recorded."""
    own, other = (
        next((c for c in score_curves(run) if (SCORE + c.name, c.split) == (name, split)), None)
        for run in (judged.run, judged.other)
    )
    if own is None or other is None:
        return None
    first, last = int(np.flatnonzero(other.steps == from_step)[0]), int(np.flatnonzero(own.steps == to_step)[0])
    return own.since(other, first, last, judged.limits).change


def _of_batches(judged: JudgedRun, rows: pd.DataFrame, name: str, old: float, other: pd.DataFrame) -> Quantity:
    """Of training batches one row is noise: means of rows, from the known start where there is one, as in explain."""
    start = judged.starts.get(name) if judged.same_run and judged.step is None else None
    level = judged.limits["confidence"]
    ends = ends_of(rows["value"], rows["step"], reference=start, level=level)
    end = ends.end if math.isfinite(ends.end) else 0.0
    if not judged.same_run:
        before = ends_of(other["value"], other["step"]).end
        old = before if math.isfinite(before) else old
    elif judged.step is None and ends.change.bounds is not None:
        method = f"from {ends.start_is} to {ends.end_is}"
        change = Interval(ends.change.value, ends.change.low, ends.change.high, ends.k, method, level)
        return Quantity(unknown_interval(end, ends.k), ends.start, change)
    return Quantity(unknown_interval(end, ends.k), old, unknown_interval(end - old))


def _rows(pairs: PairRows, name: str, split: str | None) -> pd.DataFrame:
    """The metric's rows in the order of steps, of one split; see `metric_rows`."""
    rows = metric_rows(pairs, name, split)
    if rows.empty:
        known = sorted(set(pairs.run.history["name"]))
        others = f"there are {some(known, 8)}" if known else "the run has no metrics at all"
        raise Missing(f"no metric {name}{f' in split {split}' if split else ''}; {others}")
    splits = sorted(set(rows["split"]))
    if len(splits) > 1:
        raise Ambiguous(f"metric {name} is recorded for splits {', '.join(splits)}: name one (split: ...)")
    return rows


def _at_baseline(judged: JudgedRun, rows: pd.DataFrame, name: str, split: str) -> tuple[Step, float, float]:
    """(step or REFERENCE, value, its weight) at the baseline; without a named one at the reference, where the metric is
    known of it, else at the first step."""
    if judged.same_run and judged.step in (None, REFERENCE):
        known = at_reference(judged.pairs, split)
        if name in known:
            return REFERENCE, known[name], math.nan
    if judged.step == REFERENCE:
        raise Missing("the metric was not measured under the reference")
    own = rows if judged.same_run and judged.step is None else rows[rows["step"] == judged.step]
    if not judged.same_run:
        own = rows.iloc[[-1]]
    if own.empty:
        measured = some(sorted({int(s) for s in rows["step"]}), 10)
        raise Missing(f"the metric was not measured at step {judged.step}; it was at {measured}")
    return int(own.iloc[0]["step"]), float(own.iloc[0]["value"]), float(own.iloc[0]["weight"])


def _paired(judged: JudgedRun, name: str, split: str, from_step: Step, to_step: int) -> Quantity | None:
    """A metric and its change over the pairs that both steps measured, from the metric table's own formula: a mean over
    pairs (or over one side's responses) by the interval that the explanation gives it, any other over resampled pairs.
    None where the table has no formula, or fewer than two pairs are in common."""
    ends = ((judged.other_pairs, from_step), (judged.pairs, to_step))
    if not all(split in rows.steps for rows, _ in ends):
        return None
    ids = [set(rows.rows(split, rows.steps[split][-1] if s == REFERENCE else int(s))["pair_id"]) for rows, s in ends]
    if len(common := ids[0] & ids[1]) < 2:
        return None
    old, new = (sums_at(rows, split, step, common) for rows, step in ends)
    each = [_each(sums, name, rows.run.info.loss) for sums, (rows, _) in zip((old, new), ends, strict=True)]
    if each[0] is not None and each[1] is not None and len(each[0]) == len(each[1]):
        known = np.isfinite(each[0]) & np.isfinite(each[1])
        if not known.any():
            return None
        before, after = each[0][known], each[1][known]
        change = enough(t_interval(after - before), judged.limits)
        return Quantity(enough(mean_interval(after), judged.limits), float(before.mean()), change)
    return _resampled(name, old, new)


def _each(sums: PairSums, name: str, loss: LossSpec | None) -> FloatArray | None:
    """The values whose mean the metric is, one a pair, in the order of the pairs; None where it is no such mean."""
    if metric_of(name) is METRICS["ce"] and (side := side_of(name)) in SIDES:
        s = SIDES.index(str(side))
        with np.errstate(divide="ignore", invalid="ignore"):
            ce: FloatArray = -sums.policy["sum_logp"][s] / sums.policy["n_tokens"][s]
        return ce
    return of_each_pair(sums, name, loss)


def _resampled(name: str, old: PairSums, new: PairSums) -> Quantity | None:
    """A metric of one side that is no mean over pairs (a perplexity)."""
    metric, side = metric_of(name), side_of(name)
    if metric is None or metric.of_side is None or side not in SIDES:
        return None
    formula, s = metric.of_side, SIDES.index(str(side))
    first, last = ({column: values[s] for column, values in sums.policy.items()} for sums in (old, new))
    if not formula(first) or not formula(last):
        return None

    def drawn(columns: Columns, counts: FloatArray) -> FloatArray:
        """The metric of each resample, (draws,)."""
        resamples = ({c: np.repeat(v, count) for c, v in columns.items()} for count in counts.astype(np.int64))
        return np.array([value.value for r in resamples if (value := formula(r))])

    n = len(first["n_tokens"])
    with np.errstate(all="ignore"):
        value = bootstrap(lambda counts: drawn(last, counts), n)
        change = bootstrap(lambda counts: drawn(last, counts) - drawn(first, counts), n)
    return Quantity(value, value.value - change.value, change) if math.isfinite(change.value) else None


SUBJECTS.add(
    "metric",
    Subject(
        "NAME",
        "as logged, else as the pairs give it, e.g. score/accuracy, loss, ce/chosen",
        _judge,
        limits=LIMITS,
        options={"split": None},
    ),
)
