"""The means of training batches whose pairs were recorded, where no trainer logged any: what a trainer would log."""

from __future__ import annotations

import pandas as pd

from dpo_diag.losses import LossSpec
from dpo_diag.records.metric_table import measure, pair_sums
from dpo_diag.records.splits import role_from_name

MEANS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps")
"""What the checks read of training batches."""


def batch_means(pairs: pd.DataFrame, loss: LossSpec | None, logged: set[str]) -> pd.DataFrame | None:
    """History rows of every step of the training splits; None where a trainer logged them, or nothing can be computed.

    Args:
        logged: splits of which the history holds means.
    """
    rows = []
    for split, of_split in pairs.groupby("split", sort=True, observed=True):
        if role_from_name(str(split)) != "train" or split in logged or "n_tokens" not in of_split:
            continue
        reference = of_split[of_split["role"] == "ref"]
        for step, batch in of_split[of_split["role"] == "policy"].groupby("step", sort=True, observed=True):
            known = reference[reference["pair_id"].isin(batch["pair_id"])]
            means = measure(pair_sums(batch, known), loss, MEANS)
            rows += [(step, split, name, mean.value, mean.weight) for name, mean in means.items()]
    return (
        pd.DataFrame(rows, columns=["step", "split", "name", "value", "weight"]).assign(derived=True) if rows else None
    )
