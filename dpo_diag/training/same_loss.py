"""A batch's loss under other coefficients than those it was trained with: what a schedule did apart from the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dpo_diag.losses import LossSpec
from dpo_diag.training.batch import Batch, FloatArray

_STEP = 1e-3
"""Nats by which a response's log-prob is moved to see how steep a loss is there."""


def same_loss(batch: Batch, spec: LossSpec, began: LossSpec) -> tuple[float, float]:
    """(the batch's loss under the coefficients `began`, how many times as steep it is under those of `spec`).

    Steepness is the sum over responses of |d loss / d log-prob|, which the gradient's norm goes with where the model's
    own part does not change. A loss that couples the pairs of a batch cannot be computed again: it is taken for
    proportional to the coefficients that moved.

    Args:
        batch: of pairs; spec: what it was trained with.
    """
    if spec.not_additive is not None or (losses := _losses(batch, spec, began)) is None:
        ratio = _ratio(spec, began)
        return batch.loss / ratio, ratio
    now, then = (_steepness(batch, spec, of) for of in (spec, began))
    slope = now / then if now > 0 and then > 0 else 1.0
    return float(losses.mean()), slope


def _losses(batch: Batch, spec: LossSpec, of: LossSpec) -> FloatArray | None:
    if spec.has_pair_beta:  # the pairs' own follow the common one
        own = {**batch.of_row, "beta": batch.of_row["beta"] * (of.beta / spec.beta)}
        batch = replace(batch, of_row=own)
    return batch.pair_losses(of)


def _steepness(batch: Batch, spec: LossSpec, of: LossSpec) -> float:
    """Sum over responses of |d loss / d log-prob|, by central differences."""
    sums = {name: batch.policy[name] for name in batch.policy if name in ("sum_logp", "loss_logp")}

    def at(nudge: FloatArray) -> FloatArray:
        moved = {name: values + nudge[:, None] for name, values in sums.items()}
        losses = _losses(replace(batch, policy={**batch.policy, **moved}), spec, of)
        return np.full(len(batch), np.nan) if losses is None else losses

    return sum(float(np.abs(at(side) - at(-side)).sum()) / (2 * _STEP) for side in _STEP * np.eye(2))


def _ratio(spec: LossSpec, began: LossSpec) -> float:
    """The largest factor by which a coefficient has moved; 1 where none has, or it began at 0."""
    names = ["beta", *(kind for kind in spec.types if spec.types.count(kind) == 1)]
    factors = [spec.value_of(n) / began.value_of(n) for n in names if began.value_of(n) and spec.value_of(n)]
    return max(factors, key=lambda f: abs(np.log(abs(f))), default=1.0)
