"""What is logged of a set of rows, exact: numerators and denominators of every row, divided once.

TRL averages micro-batch means, each weighing the same; here every pair (or token) weighs the same, whatever the
micro-batches, the accumulation and the number of processes. The definitions are those of the metric table.
"""

from __future__ import annotations

import math

import numpy as np

from dpo_diag.losses import LossSpec
from dpo_diag.records.metric_table import Value, measure
from dpo_diag.training.batch import Batch


def batch_metrics(batch: Batch, spec: LossSpec | None, residual: float = math.nan) -> dict[str, Value]:
    """Every live metric of a set of rows; what cannot be known is absent.

    The live metrics of `records.metric_table`, and what only a trainer's batch can give: `loss_exact`: the recomputed
    loss, mean over pairs, for SFT over the tokens in the loss. `loss_on_prompt`: share of those tokens that are not the
    response's. `loss_residual`: the largest over the micro-batches. Packed rows have no metrics per response.
    """
    values = measure(batch, spec)
    losses = None if spec is None else batch.pair_losses(spec)
    if losses is not None:
        values["loss_exact"] = Value(float(losses.mean()), float(len(batch)))
    if "n_loss" in batch.of_row:
        values |= _of_sft_loss(batch)
    if not math.isnan(residual):
        values["loss_residual"] = Value(residual, float(len(batch)))
    return values


def _of_sft_loss(batch: Batch) -> dict[str, Value]:
    n, outside = batch.of_row["n_loss"], batch.of_row["n_loss_prompt"]
    tokens, known = float(n.sum()), ~np.isnan(outside)
    if tokens == 0:
        return {}
    values = {"loss_exact": Value(float(batch.of_row["loss_sum"].sum()) / tokens, tokens)}
    if known.any():
        n_known = float(n[known].sum())
        share = float(outside[known].sum()) / n_known if n_known else math.nan
        values["loss_on_prompt"] = Value(share, n_known)
    return values


def trainer_weights(batch: Batch) -> dict[str, float]:
    """What TRL's own metrics are means over, by name: pairs or tokens."""
    if not batch.has_pairs:
        return dict.fromkeys(("loss", "entropy", "mean_token_accuracy"), float(batch.of_row["n_loss"].sum()))
    chosen, rejected = (float(t) for t in batch.policy["n_tokens"].sum(axis=1))
    of_pairs = (
        "loss", "aux_loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps/chosen", "logps/rejected",
    )  # fmt: skip
    of_tokens = {"mean_token_accuracy": chosen, "logits/chosen": chosen, "logits/rejected": rejected}
    return dict.fromkeys(of_pairs, float(len(batch))) | of_tokens | {"entropy": chosen + rejected}
