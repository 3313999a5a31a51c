"""`metric: NAME`: a number of the run's history, with an interval where the records hold what it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import LIMITS, SUBJECTS, Missing, Quantity, Rule, Subject, unknown_interval
from dpo_diag.outputs.answers import POLICY
from dpo_diag.records import Run
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
        raise Missing(f"metric {name} is recorded for splits {', '.join(splits)}: the rule must name one")
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
    """A metric over pairs and its change, from the pairs that both steps measured; None where it is none, or fewer
    than two pairs are in common."""
    base, _, side = name.partition("/")
    computed = _OVER_PAIRS.get(base)
    if computed is None or side not in ("chosen", "rejected"):
        return None
    old, new = (
        _pairs(run, step, split, side) for run, step in ((judged.other, from_step), (judged.run, to_step))
    )  # fmt: skip
    common = old.index.intersection(new.index)
    if len(common) < 2:
        return None
    old, new = old.loc[common], new.loc[common]
    with np.errstate(all="ignore"):
        value = bootstrap(lambda counts: computed(new, counts), len(common))
        change = bootstrap(lambda counts: computed(new, counts) - computed(old, counts), len(common))
    if not math.isfinite(change.value):
        return None
    return Quantity(value, value.value - change.value, change)


def _pairs(run: Run, step: int, split: str, side: str) -> pd.DataFrame:
    columns = ["step", "pair_id", "side", "sum_logp", "n_tokens", "n_bytes"]
    rows = run.read("pairs", columns, steps=[step], splits=[split], roles=[POLICY])
    return rows[rows["side"] == side].drop_duplicates("pair_id").set_index("pair_id").drop(columns="side").astype(float)


def _mean_ce(rows: pd.DataFrame, counts: FloatArray) -> FloatArray:
    ce = (-rows["sum_logp"] / rows["n_tokens"]).to_numpy()
    return np.asarray(counts @ ce / counts.sum(axis=1))


def _seq_mean(rows: pd.DataFrame, counts: FloatArray) -> FloatArray:
    ce = (-rows["sum_logp"] / rows["n_tokens"]).to_numpy()
    return np.asarray(counts @ np.exp(ce) / counts.sum(axis=1))


def _per(rows: pd.DataFrame, counts: FloatArray, column: str) -> FloatArray:
    return np.asarray((counts @ -rows["sum_logp"].to_numpy()) / (counts @ rows[column].to_numpy()))


_OVER_PAIRS: dict[str, Callable[[pd.DataFrame, FloatArray], FloatArray]] = {
    "ce": _mean_ce,
    "ppl_seq_geomean": lambda rows, counts: np.exp(_mean_ce(rows, counts)),
    "ppl_seq_mean": _seq_mean,
    "ppl_token": lambda rows, counts: np.exp(_per(rows, counts, "n_tokens")),
    "bits_per_byte": lambda rows, counts: _per(rows, counts, "n_bytes") / math.log(2),
}
"""Metrics over pairs -> their value in each resample; rows of one side, counts (draws, pairs)."""

SUBJECTS.add(
    "metric",
    Subject(
        "NAME", "history, e.g. score/execution_accuracy, ce/chosen", _judge, limits=LIMITS, options={"split": None}
    ),
)
