"""The short table that a training ends with: loss, perplexities, rewards and task scores, before and after."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from dpo_diag.records import Run
from dpo_diag.records.metrics import wilson_interval

ROWS: tuple[tuple[str, str], ...] = (
    ("loss", "loss"),
    ("rewards/accuracies", "reward accuracy"),
    ("rewards/margins", "reward margin"),
    ("ppl_seq_mean/chosen", "chosen ppl_seq_mean"),
    ("ppl_token/chosen", "chosen ppl_token"),
    ("ppl_seq_mean/rejected", "rejected ppl_seq_mean"),
    ("ce/chosen", "chosen cross-entropy (nats/token)"),
    ("pairs/both_fell", "share of pairs where both fell"),
    ("ppl_token/response", "response ppl_token"),
    ("ppl_token/prompt", "prompt ppl_token"),
    ("mean_token_accuracy", "token accuracy"),
)
"""metric -> what a person calls it, in the order of the table; rows that a run has no value for are left out."""


def before_after(run: Run) -> pd.DataFrame:
    """First and last value of the run's evaluation metrics and task scores.

    Returns:
        One row per (split, metric): split, metric, label, from_step, before, to_step, after, n, low, high: n and the
        95 % Wilson interval of `after` for scores (shares of n answers), null for the rest. Empty for a run without
        evaluations.
    """
    history = run.history
    rows = []
    splits = [s for s in history["split"].unique() if str(s).startswith("eval")]
    for split in splits:
        for metric, label in ROWS:
            rows.append(_row(history, str(split), metric, label))
    scored = history.loc[history["name"].str.startswith("score/"), ["split", "name"]].drop_duplicates()
    for split, name in scored.itertuples(index=False):
        label = f"{name.removeprefix('score/').replace('_', ' ')}, {str(split).removeprefix('eval_')}"
        rows.append(_row(history, str(split), str(name), label))
    columns = ["split", "metric", "label", "from_step", "before", "to_step", "after", "n", "low", "high"]
    return pd.DataFrame([r for r in rows if r is not None], columns=columns)


def _row(history: pd.DataFrame, split: str, metric: str, label: str) -> dict[str, object] | None:
    values = history[(history["split"] == split) & (history["name"] == metric)].sort_values("step")
    if values.empty:
        return None
    first, last = values.iloc[0], values.iloc[-1]
    row: dict[str, object] = {
        "split": split, "metric": metric, "label": label,
        "from_step": int(first["step"]), "before": float(first["value"]),
        "to_step": int(last["step"]), "after": float(last["value"]),
        "n": np.nan, "low": np.nan, "high": np.nan,
    }  # fmt: skip
    weight, value = float(last["weight"]), float(last["value"])
    if metric.startswith("score/") and weight > 0 and 0 <= value <= 1:
        low, high = wilson_interval(value * weight, round(weight))
        row |= {"n": weight, "low": low, "high": high}
    return row


def format_table(table: pd.DataFrame) -> str:
    """The table for a terminal; says so when there is nothing to show."""
    if table.empty:
        return "no evaluation was recorded; hint: give an evaluation set (data.eval_share or data.eval_path)"
    several = table.loc[~table["metric"].str.startswith("score/"), "split"].nunique() > 1
    labels = [
        f"{row.label} [{row.split}]" if several and not str(row.metric).startswith("score/") else str(row.label)
        for row in table.itertuples(index=False)
    ]
    width = max(len(label) for label in labels)
    first, last = int(table["from_step"].min()), int(table["to_step"].max())
    lines = [f"{'':{width}}  {'step ' + str(first):>10}  {'step ' + str(last):>10}"]
    for label, row in zip(labels, table.itertuples(index=False), strict=True):
        line = f"{label:{width}}  {_number(float(row.before)):>10}  {_number(float(row.after)):>10}"
        if not math.isnan(float(row.low)):
            line += f"  n = {int(float(row.n))}, 95 % {float(row.low):.3f} to {float(row.high):.3f}"
        lines.append(line)
    return "\n".join(lines)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.4g}" if abs(value) >= 1000 or (value != 0 and abs(value) < 0.001) else f"{value:.3f}"
