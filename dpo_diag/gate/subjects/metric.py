"""`metric: NAME`: a number of the run's history, with an interval where the records hold what it is made of."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.decompose.means import NAMES
from dpo_diag.diagnosis.decompose.metric_change import metric_change
from dpo_diag.diagnosis.evidence import SCORE, score_curves
from dpo_diag.diagnosis.logged import at_reference, metric_rows
from dpo_diag.diagnosis.measure import enough
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, Step
from dpo_diag.ends import ends_of
from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import LIMITS, SUBJECTS, Ambiguous, Missing, Quantity, Rule, Subject, unknown_interval
from dpo_diag.stats import Interval, proportion
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
    ends = ((judged.other_pairs, step), (judged.pairs, int(now["step"])))
    paired = metric_change(name, split, *ends, PairIntervals.of(judged.pairs, judged.limits))
    if paired is not None:
        return Quantity(paired.after, paired.before, paired.change)
    if name.startswith(SCORE) and 0 <= value <= 1 and 0 <= old <= 1 and n0 >= 1 and n1 >= 1:
        own, change = _score(judged, name, split, int(step), int(now["step"]))
        return Quantity(own or enough(proportion(value * n1, float(n1)), judged.limits), old, change)
    return Quantity(
        unknown_interval(value, 0 if pd.isna(n1) else int(n1)), old, unknown_interval(value - old)
    )  # fmt: skip


def _score(
    judged: JudgedRun, name: str, split: str, from_step: int, to_step: int
) -> tuple[Interval | None, Interval | None]:
    """A score and its change as the explanation gives them: paired where the answers are recorded."""
    own, other = (
        next((c for c in score_curves(run) if (SCORE + c.name, c.split) == (name, split)), None)
        for run in (judged.run, judged.other)
    )
    if own is None or other is None:
        return None, None
    first, last = int(np.flatnonzero(other.steps == from_step)[0]), int(np.flatnonzero(own.steps == to_step)[0])
    return own.value_at(last, judged.limits), own.since(other, first, last, judged.limits).change


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
        at = rows[rows["step"] == judged.pairs.reference_step(split)]
        if name.startswith(SCORE) and len(at):  # logged at the step that is the reference, with its questions
            return int(at.iloc[0]["step"]), float(at.iloc[0]["value"]), float(at.iloc[0]["weight"])
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
