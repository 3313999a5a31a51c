"""Metrics of pairs: the loss, implicit rewards, and where both sides moved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, is_per_token, pair_losses
from dpo_diag.records.metric_table import METRICS, FloatArray, Metric, Sums

OfEach = Callable[[Sums, LossSpec | None], FloatArray | None]


def _log_ratios(rows: Sums, column: str = "sum_logp") -> FloatArray | None:
    """Log-ratios to the reference, (2, pairs), NaN for a pair that lacks one; None where all do."""
    if column not in rows.reference or column not in rows.policy:
        return None
    ratios: FloatArray = rows.policy[column] - rows.reference[column]
    unknown = np.isnan(ratios).any(axis=0)
    return None if unknown.all() else np.where(unknown, np.nan, ratios)


def _of_ratios(formula: Callable[[FloatArray, float], FloatArray]) -> OfEach:
    """Something of beta and the loss's log-ratios, or log-probs where it has no reference."""

    def of_each(rows: Sums, spec: LossSpec | None) -> FloatArray | None:
        if spec is None:
            return None
        if spec.needs_reference:
            ratios = _log_ratios(rows, "sum_logp" if spec.ld_alpha is None else "loss_logp")
        else:
            ratios = rows.policy["sum_logp"]
            ratios = ratios / np.maximum(rows.policy["n_tokens"], 1) if is_per_token(spec.types) else ratios
        return None if ratios is None else formula(ratios, spec.beta)

    return of_each


def _true(ratios: FloatArray, holds: npt.NDArray[np.bool_]) -> FloatArray:
    """1 or 0 for each pair, NaN where its log-ratios are unknown."""
    return np.where(np.isnan(ratios).any(axis=0), np.nan, holds)


def _fell(formula: Callable[[FloatArray], npt.NDArray[np.bool_]]) -> OfEach:
    def of_each(rows: Sums, spec: LossSpec | None) -> FloatArray | None:
        ratios = _log_ratios(rows)
        return None if ratios is None else _true(ratios, formula(ratios))

    return of_each


def _loss(rows: Sums, spec: LossSpec | None) -> FloatArray | None:
    """The loss recomputed from the sums; None where it has another form (other log-probs, coupled pairs, weights)."""
    if spec is None or spec.not_additive or spec.use_weighting or spec.ld_alpha is not None:
        return None
    ratios = _log_ratios(rows) if spec.needs_reference else rows.policy["sum_logp"]
    if ratios is None:
        return None
    known = ~np.isnan(ratios).any(axis=0)
    n, sums = rows.policy["n_tokens"][:, known], rows.policy["sum_logp"][:, known]
    losses = np.full(known.shape, np.nan)
    try:
        losses[known] = pair_losses(
            spec, *ratios[:, known], n_chosen=n[0], n_rejected=n[1], chosen_sum_logp=sums[0], rejected_sum_logp=sums[1]
        )
    except DiagError:
        return None
    return losses


METRICS.add("loss", Metric(
    "loss", "nats", "lower", "the training loss, mean over pairs; SFT terms included",
    of_each=_loss, stand_ins=("preference_loss",),
))  # fmt: skip
METRICS.add("preference_loss", Metric(
    "preference part of the loss", "nats", "lower", "the loss without its NLL term",
))  # fmt: skip
METRICS.add("nll_loss", Metric(
    "NLL term", "nats/token", "lower", "chosen token mean NLL, before its weight", bounds=(0.0, None),
))  # fmt: skip
METRICS.add("loss_exact", Metric(
    "recomputed loss", "nats", "lower", "the loss recomputed from the recorded sums, mean over pairs",
))  # fmt: skip
METRICS.add("loss_residual", Metric(
    "loss residual", "nats", "lower", "|recomputed loss - the trainer's|, the largest over micro-batches",
))  # fmt: skip
METRICS.add("pair_beta", Metric(
    "mean beta of the pairs", "ratio", "neither", "mean over pairs of the beta of each one's own (ε-DPO)",
))  # fmt: skip
METRICS.add("base_beta", Metric(
    "beta of the next pairs", "ratio", "neither",
    "beta from which each pair's own is made (ε-DPO); it moves with every update",
))  # fmt: skip
METRICS.add("rewards/chosen", Metric(
    "chosen reward", "nats", "neither",
    "mean over pairs of beta x log-ratio to the reference; beta x log-prob where the loss has none",
    of_each=_of_ratios(lambda r, beta: beta * r[0]),
))  # fmt: skip
METRICS.add("rewards/rejected", Metric(
    "rejected reward", "nats", "neither",
    "mean over pairs of beta x log-ratio to the reference; beta x log-prob where the loss has none",
    of_each=_of_ratios(lambda r, beta: beta * r[1]),
))  # fmt: skip
METRICS.add("rewards/margins", Metric(
    "reward margin", "nats", "higher", "mean of rewards/chosen - rewards/rejected",
    of_each=_of_ratios(lambda r, beta: beta * (r[0] - r[1])),
))  # fmt: skip
METRICS.add("rewards/accuracies", Metric(
    "reward accuracy", "share", "higher", "share of pairs with a positive margin",
    of_each=_of_ratios(lambda r, beta: _true(r, r[0] > r[1])),
))  # fmt: skip
METRICS.add("pairs/both_fell", Metric(
    "share of pairs where both fell", "share", "lower",
    "share of pairs whose chosen and rejected log-probs both lie below the reference's",
    of_each=_fell(lambda r: (r[0] < 0) & (r[1] < 0)),
))  # fmt: skip
METRICS.add("pairs/chosen_fell", Metric(
    "share of pairs where chosen fell", "share", "lower",
    "share of pairs whose chosen log-prob lies below the reference's",
    of_each=_fell(lambda r: r[0] < 0),
))  # fmt: skip
