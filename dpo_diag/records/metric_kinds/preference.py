"""Metrics of pairs: the loss, implicit rewards, and where both sides moved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.records import metrics
from dpo_diag.records.metric_table import METRICS, FloatArray, Metric, Sums, Value

OfPairs = Callable[[Sums, LossSpec | None], Value | None]


def _log_ratios(rows: Sums, column: str = "sum_logp") -> FloatArray | None:
    """Log-ratios to the reference, (2, pairs), of the pairs that have one."""
    if column not in rows.reference or column not in rows.policy:
        return None
    ratios = rows.policy[column] - rows.reference[column]
    known: FloatArray = ratios[:, ~np.isnan(ratios).any(axis=0)]
    return known if known.shape[1] else None


def _of_ratios(formula: Callable[[FloatArray, float], float]) -> OfPairs:
    """A mean over pairs of something of the loss's log-ratios and beta."""

    def of_pairs(rows: Sums, spec: LossSpec | None) -> Value | None:
        ratios = _log_ratios(rows, "sum_logp" if spec is None or spec.ld_alpha is None else "loss_logp")
        if ratios is None or spec is None:
            return None
        return Value(float(formula(ratios, spec.beta)), float(ratios.shape[1]))

    return of_pairs


def _fell(share: Callable[[metrics.Quadrants], float]) -> OfPairs:
    def of_pairs(rows: Sums, spec: LossSpec | None) -> Value | None:
        ratios = _log_ratios(rows)
        return None if ratios is None else Value(share(metrics.quadrants(*ratios)), float(ratios.shape[1]))

    return of_pairs


def _loss(rows: Sums, spec: LossSpec | None) -> Value | None:
    """The loss recomputed from the sums; None where it has another form (other log-probs, coupled pairs, weights)."""
    ratios = _log_ratios(rows)
    if spec is None or ratios is None or spec.not_additive or spec.use_weighting or spec.ld_alpha is not None:
        return None
    n, known = rows.policy["n_tokens"], ~np.isnan(rows.policy["sum_logp"] - rows.reference["sum_logp"]).any(axis=0)
    try:
        losses = pair_losses(
            spec, *ratios, n_chosen=n[0][known], n_rejected=n[1][known],
            chosen_sum_logp=rows.policy["sum_logp"][0][known],
        )  # fmt: skip
    except DiagError:
        return None
    return Value(float(losses.mean()), float(losses.size))


METRICS.add("loss", Metric(
    "loss", "nats", "lower", "the training loss, mean over pairs; SFT terms included",
    of_pairs=_loss, stand_ins=("preference_loss",), live=False,
))  # fmt: skip
METRICS.add("preference_loss", Metric(
    "preference part of the loss", "nats", "lower", "the loss without its NLL term", live=False,
))  # fmt: skip
METRICS.add("nll_loss", Metric(
    "NLL term", "nats/token", "lower", "chosen token mean NLL, before its weight", bounds=(0.0, None),
    live=False,
))  # fmt: skip
METRICS.add("loss_exact", Metric(
    "recomputed loss", "nats", "lower", "the loss recomputed from the recorded sums, mean over pairs", live=False,
))  # fmt: skip
METRICS.add("loss_residual", Metric(
    "loss residual", "nats", "lower", "|recomputed loss - the trainer's|, the largest over micro-batches", live=False,
))  # fmt: skip
METRICS.add("rewards/chosen", Metric(
    "chosen reward", "nats", "neither", "mean over pairs of beta x log-ratio to the reference",
    of_pairs=_of_ratios(lambda r, beta: beta * r[0].mean()), live=False,
))  # fmt: skip
METRICS.add("rewards/rejected", Metric(
    "rejected reward", "nats", "neither", "mean over pairs of beta x log-ratio to the reference",
    of_pairs=_of_ratios(lambda r, beta: beta * r[1].mean()), live=False,
))  # fmt: skip
METRICS.add("rewards/margins", Metric(
    "reward margin", "nats", "higher", "mean of rewards/chosen - rewards/rejected",
    of_pairs=_of_ratios(lambda r, beta: beta * (r[0] - r[1]).mean()), live=False,
))  # fmt: skip
METRICS.add("rewards/accuracies", Metric(
    "reward accuracy", "share", "higher", "share of pairs with a positive margin",
    of_pairs=_of_ratios(lambda r, beta: float((r[0] > r[1]).mean())), live=False,
))  # fmt: skip
METRICS.add("pairs/both_fell", Metric(
    "share of pairs where both fell", "share", "lower",
    "share of pairs whose chosen and rejected log-probs both lie below the reference's",
    of_pairs=_fell(lambda q: q.both_fell),
))  # fmt: skip
METRICS.add("pairs/chosen_fell", Metric(
    "share of pairs where chosen fell", "share", "lower",
    "share of pairs whose chosen log-prob lies below the reference's",
    of_pairs=_fell(lambda q: q.both_fell + q.rejected_rose),
))  # fmt: skip
