"""A metric: by how many tokens the longest chosen answer exceeds the mean one."""

from __future__ import annotations

from dpo_diag.records.metric_table import METRICS, Columns, Metric, Value


def longest(rows: Columns) -> Value:
    return Value(float(rows["n_tokens"].max() - rows["n_tokens"].mean()), float(len(rows["n_tokens"])))


METRICS.add(
    "toy_longest",
    Metric("{side} longest beyond the mean", "tokens", "neither", "a toy", sides=True, of_side=longest),
)
