"""`metric: NAME`: a number of the run's history, with an interval where the records hold what it is made of."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import LIMITS, SUBJECTS, Ambiguous, Missing, Quantity, Rule, Subject, unknown_interval
from dpo_diag.outputs.answers import POLICY
from dpo_diag.records import Run
from dpo_diag.records.metric_table import Columns, metric_of, pair_sums, side_of
from dpo_diag.records.schemas import SIDES
from dpo_diag.stats import FloatArray, bootstrap, proportion, proportion_change
from dpo_diag.text import some


def _judge(judged: JudgedRun, rule: Rule) -> Quantity:
    name = str(rule["metric"])
    rows = _history(judged.run, name, rule.get("split"))
    now, split = rows.iloc[-1], str(rows.iloc[-1]["split"])
    before = _at_baseline(judged, rows if judged.same_run else _history(judged.other, name, split))
    value, old = float(now["value"]), float(before["value"])
    if not math.isfinite(value):
        raise Missing(f"the metric is {value} at step {int(now['step'])}")
    paired = _paired(judged, name, split, int(before["step"]), int(now["step"]))
    if paired is not None:
        return paired
    n0, n1 = before["weight"], now["weight"]
    if name.startswith("score/") and 0 <= value <= 1 and 0 <= old <= 1 and n0 >= 1 and n1 >= 1:
        share = proportion(value * n1, float(n1))
        return Quantity(share, old, proportion_change(old, float(n0), value, float(n1)))
    return Quantity(
        unknown_interval(value, 0 if pd.isna(n1) else int(n1)), old, unknown_interval(value - old)
    )  # fmt: skip


def _history(run: Run, name: str, split: str | None) -> pd.DataFrame:
    rows = run.history[run.history["name"] == name]
    if split is not None:
        rows = rows[rows["split"] == split]
    if rows.empty:
        known = sorted(set(run.history["name"]))
        others = f"there are {some(known, 8)}" if known else "the run has no metrics at all"
        raise Missing(f"no metric {name}{f' in split {split}' if split else ''}; {others}")
    splits = sorted(set(rows["split"]))
    if len(splits) > 1:
        raise Ambiguous(f"metric {name} is recorded for splits {', '.join(splits)}: name one (split: ...)")
    return rows.sort_values("step")


def _at_baseline(judged: JudgedRun, rows: pd.DataFrame) -> pd.Series:
    if not judged.same_run:
        return rows.iloc[-1]
    if judged.step is None:
        return rows.iloc[0]
    own = rows[rows["step"] == judged.step]
    if own.empty:
        measured = some(sorted({int(s) for s in rows["step"]}), 10)
        raise Missing(f"the metric was not measured at step {judged.step}; it was at {measured}")
    return own.iloc[0]


def _paired(judged: JudgedRun, name: str, split: str, from_step: int, to_step: int) -> Quantity | None:
    """A metric of one side and its change, from the pairs that both steps measured: the metric table's own formula over
    resampled pairs; None where the table has none, or fewer than two pairs are in common."""
    metric, side = metric_of(name), side_of(name)
    if metric is None or metric.of_side is None or side not in SIDES:
        return None
    formula = metric.of_side
    before, after = _pairs(judged.other, from_step, split), _pairs(judged.run, to_step, split)
    common = np.intersect1d(before["pair_id"], after["pair_id"])
    if len(common) < 2:
        return None
    old, new = (_columns(rows[rows["pair_id"].isin(common)], side) for rows in (before, after))
    if not formula(old) or not formula(new):
        return None

    def drawn(columns: Columns, counts: FloatArray) -> FloatArray:
        """The metric of each resample, (draws,)."""
        resamples = ({c: np.repeat(v, count) for c, v in columns.items()} for count in counts.astype(np.int64))
        return np.array([value.value for r in resamples if (value := formula(r))])

    n = len(old["n_tokens"])
    with np.errstate(all="ignore"):
        value = bootstrap(lambda counts: drawn(new, counts), n)
        change = bootstrap(lambda counts: drawn(new, counts) - drawn(old, counts), n)
    return Quantity(value, value.value - change.value, change) if math.isfinite(change.value) else None


def _pairs(run: Run, step: int, split: str) -> pd.DataFrame:
    return run.read("pairs", steps=[step], splits=[split], roles=[POLICY]).sort_values("pair_id")


def _columns(rows: pd.DataFrame, side: str) -> Columns:
    sums = pair_sums(rows).policy
    return {name: values[SIDES.index(side)] for name, values in sums.items()}


SUBJECTS.add(
    "metric",
    Subject(
        "NAME", "history, e.g. score/execution_accuracy, ce/chosen", _judge, limits=LIMITS, options={"split": None}
    ),
)
