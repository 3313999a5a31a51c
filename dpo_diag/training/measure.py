"""What is logged of a set of rows, exact: numerators and denominators of every row, divided once.

TRL averages micro-batch means, each weighing the same; here every pair (or token) weighs the same, whatever the
micro-batches, the accumulation and the number of processes. The definitions are those of `dpo_diag.records.metrics`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics
from dpo_diag.training.batch import Batch

_PER_TOKEN = {
    "top1": "top1_hits",
    "top5": "top5_hits",
    "entropy": "entropy_sum",
    "greedy_logp": "greedy_logp_sum",
}


class Value(NamedTuple):
    """A metric and what it is a mean over."""

    value: float
    weight: float


def batch_metrics(batch: Batch, spec: LossSpec | None, residual: float = math.nan) -> dict[str, Value]:
    """Every live metric of a set of rows; what cannot be known is absent.

    Of each side (`/chosen`, `/rejected`; for SFT `/response`, `/prompt`): `ce` (nats per token, mean over responses),
    the three perplexities, `bits_per_byte`, `top1`, `top5` (shares of tokens), `entropy`, `greedy_logp` (nats per
    token). `pairs/both_fell`, `pairs/chosen_fell`: shares of pairs, against the reference. `loss_exact`: the recomputed
    loss, mean over pairs, for SFT over the tokens in the loss. `loss_on_prompt`: share of those tokens that are not the
    response's. `loss_residual`: the largest over the micro-batches. Packed rows have no metrics per response.
    """
    values: dict[str, Value] = {}
    for s, side in enumerate(batch.sides):
        values |= {f"{name}/{side}": value for name, value in _of_side(batch, s).items()}
    if "sum_logp" in batch.reference:
        shares = metrics.quadrants(*(batch.policy["sum_logp"] - batch.reference["sum_logp"]))
        values["pairs/both_fell"] = Value(shares.both_fell, float(len(batch)))
        values["pairs/chosen_fell"] = Value(shares.both_fell + shares.rejected_rose, float(len(batch)))
    losses = None if spec is None else batch.pair_losses(spec)
    if losses is not None:
        values["loss_exact"] = Value(float(losses.mean()), float(len(batch)))
    if "n_loss" in batch.of_row:
        values |= _of_sft_loss(batch)
    if not math.isnan(residual):
        values["loss_residual"] = Value(residual, float(len(batch)))
    return values


def _of_side(batch: Batch, s: int) -> dict[str, Value]:
    scored = batch.policy["n_tokens"][s] > 0  # a response cut to nothing has no cross-entropy
    if not scored.any():
        return {}
    column = {name: values[s][scored] for name, values in batch.policy.items()}
    total, n = column["sum_logp"], column["n_tokens"]
    tokens, count = float(n.sum()), float(scored.sum())
    values = {"ppl_token": Value(metrics.ppl_token(total, n), tokens)}
    if not batch.packed:
        values["ce"] = Value(metrics.mean_ce(total, n), count)
        values["ppl_seq_mean"] = Value(metrics.ppl_seq_mean(total, n), count)
        values["ppl_seq_geomean"] = Value(metrics.ppl_seq_geomean(total, n), count)
    if "n_bytes" in column:
        n_bytes = column["n_bytes"]
        values["bits_per_byte"] = Value(metrics.bits_per_byte(total, n_bytes), float(n_bytes.sum()))
    for name, sums in _PER_TOKEN.items():
        if sums in column:
            values[name] = Value(float(column[sums].sum()) / tokens, tokens)
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
