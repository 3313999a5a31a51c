"""What a run holds of a metric: its history where it is logged, else what the pair records give; which split is shown,
and each metric's first and last value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from dpo_diag import text
from dpo_diag.diagnosis.evidence import SCORE, score_curves
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, Step, step_name
from dpo_diag.records import Run
from dpo_diag.records.metric_table import METRICS, PairSums, label_of, measure, metric_of, pair_sums
from dpo_diag.records.schemas import TABLES
from dpo_diag.records.tables import REFERENCE_COLUMNS
from dpo_diag.thresholds import defaults

MEASURED = ("loss", "logps/chosen", "logps/rejected")
"""Without one of these a split of the history holds scores or a trainer's bookkeeping only."""
SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "ppl_seq_mean/chosen", "ppl_token/chosen",
         "ppl_seq_mean/rejected", "ce/chosen", "pairs/both_fell", "ppl_token/response", "ppl_token/prompt",
         "mean_token_accuracy")  # fmt: skip
"""Metrics of the table after a training, in its order; those that a run has no value for are left out."""


def measured_split(run: Run, wanted: str | None = None) -> str | None:
    """The split whose curves are shown: the wanted one if the history has it, else the best measured one, else None."""
    history = run.history
    if wanted is not None and (history["split"] == wanted).any():
        return wanted
    measured = run.preferred(history.loc[history["name"].isin(MEASURED), "split"].dropna().unique().tolist())
    return measured[0] if measured else None


def score_label(name: str, split: str) -> str:
    """A score of a split in words; the split is left out where it is the usual one.

    >>> score_label("score/execution_accuracy", "held_out"), score_label("accuracy", "eval")
    ('execution accuracy, held out', 'accuracy')
    """
    words = name.removeprefix(SCORE).replace("_", " ")
    return words if split in ("eval", "train") else f"{words}, {split.replace('_', ' ')}"


def before_after(run: Run) -> pd.DataFrame:
    """First and last value of the run's evaluation metrics and task scores; the first one is the reference's where the
    pairs were measured under it and the run started from it (see `PairRows.start`).

    Returns:
        One row per (split, metric): split, metric, label, from_step (or REFERENCE), before, to_step, after, n, low,
        high: n and the 95 % interval of `after` for scores (over n questions), null for the rest. Empty for a run
        without evaluations.
    """
    history, pairs = run.history, PairRows(run)
    # Training batches hold other pairs at each step, so their first and last values do not compare.
    fixed = [s for s in map(str, history["split"].unique()) if run.role(s) != "train"]
    named = dict.fromkeys((s, m) for s in fixed for m in SHOWN)
    scores = history.loc[history["name"].str.startswith(SCORE), ["split", "name"]].drop_duplicates()
    named |= dict.fromkeys(scores.itertuples(index=False, name=None))
    starts, curves = {split: at_reference(pairs, split) for split in fixed}, score_curves(run)
    rows = []
    for split, metric in named:
        values = history.loc[(history["split"] == split) & (history["name"] == metric)].sort_values("step")
        if values.empty:
            continue
        steps, measured, weights = (values[c].astype(float).tolist() for c in ("step", "value", "weight"))
        label = score_label(metric, split) if metric.startswith(SCORE) else label_of(metric)
        start: tuple[Step, float] = (int(steps[0]), measured[0])
        if metric in starts.get(split, {}):
            start = (REFERENCE, starts[split][metric])
        row: list[Any] = [split, metric, label, *start, int(steps[-1]), measured[-1]]
        if metric.startswith(SCORE) and weights[-1] > 0 and 0 <= measured[-1] <= 1:
            curve = next(c for c in curves if (SCORE + c.name, c.split) == (metric, split))
            interval = curve.value_at(-1, defaults())
            row += [interval.n, interval.low, interval.high]
        else:
            row += [None, None, None]
        rows.append(row)
    columns = ["split", "metric", "label", "from_step", "before", "to_step", "after", "n", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"n": float, "low": float, "high": float})


def at_reference(rows: PairRows, split: str) -> dict[str, float]:
    """History name -> its value under the reference, of the split's last pairs; {} where that is not the start."""
    if split not in rows.steps or rows.start(split, last := rows.steps[split][-1])[0] != REFERENCE:
        return {}
    history, same = rows.run.history, rows.reference_step(split)
    measured = measure(sums_at(rows, split, REFERENCE), rows.run.info.loss)
    values = {name: value.value for name, value in measured.items()}
    if same is not None and same != last:
        own = history.loc[(history["split"] == split) & (history["step"] == same)]
        values |= dict(zip(own["name"].astype(str), own["value"].astype(float), strict=True))
    return values


def metric_rows(pairs: PairRows, name: str, split: str | None = None) -> pd.DataFrame:
    """A metric of a run, in the columns of history and the order of its steps: as it is logged; of a split whose
    history lacks it, measured from the pair records at each step that they hold. Empty where neither has it.

    Batches of a training are not measured: what a trainer did not log of them is not known as it would have.
    """
    history = pairs.run.history
    rows = history.loc[(history["name"] == name) & ((history["split"] == split) | (split is None))]
    metric, found = metric_of(name), []
    if metric is not None and (metric.of_side or metric.of_each):
        base = name if name in METRICS else name.partition("/")[0]
        lacking = [s for s in pairs.steps if split in (None, s) and not (rows["split"] == s).any()]
        for of_split in (s for s in lacking if pairs.run.role(s) != "train"):
            for step in pairs.steps[of_split]:
                values = measure(sums_at(pairs, of_split, step), pairs.run.info.loss, [base])
                if name in values:
                    found.append({"step": step, "split": of_split, "name": name, **values[name]._asdict()})
    measured = pd.DataFrame(found).reindex(columns=TABLES["history"].names)
    return pd.concat([f for f in (rows, measured) if len(f)] or [rows]).sort_values("step", ignore_index=True)


def sums_at(pairs: PairRows, split: str, step: Step, only: Iterable[str] | None = None) -> PairSums:
    """A split's pairs as sums, at a step or as the reference has the last step's pairs; `only`: some pair ids."""
    rows = pairs.rows(split, pairs.steps[split][-1] if step == REFERENCE else int(step))
    rows = rows if only is None else rows.loc[rows["pair_id"].isin(list(only))]
    reference = rows[["pair_id", "side"]].assign(sum_logp=rows["ref_sum_logp"])
    if step == REFERENCE:
        own = {column: rows[f"ref_{column}"] for column in REFERENCE_COLUMNS}
        rows = rows.assign(**{**own, "n_tokens": own["n_tokens"].fillna(rows["n_tokens"])})
        rows = rows.loc[rows["sum_logp"].notna()]
    return pair_sums(rows, reference)


def before_after_text(table: pd.DataFrame) -> str:
    """The table for a terminal; says so when there is nothing to show."""
    if table.empty:
        return "no evaluation was recorded; hint: give an evaluation set (data.eval_share or data.eval_path)"
    is_score = table["metric"].str.startswith(SCORE)
    several = table.loc[~is_score, "split"].nunique() > 1
    start = REFERENCE if (table["from_step"] == REFERENCE).any() else table["from_step"].min()
    rows = []
    for row in text.records(table):
        score = row["metric"].startswith(SCORE)
        label = f"{row['label']} [{row['split']}]" if several and not score else row["label"]
        notes = [] if row["low"] is None else [f"n = {row['n']:.0f}", _interval(row["low"], row["high"])]
        if start == REFERENCE and row["from_step"] not in (REFERENCE, 0):
            notes.append(f"from {step_name(row['from_step'])}")
        rows.append([label, row["before"], row["after"], ", ".join(notes)])
    header = ["", step_name(start), step_name(table["to_step"].max()), ""]
    return text.table(header, rows)


def _interval(low: float, high: float) -> str:
    return text.interval([low, high], write=lambda bound: text.number(bound, 3))
