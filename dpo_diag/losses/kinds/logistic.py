"""Losses that are functions of beta times the difference of the two scores alone."""

from __future__ import annotations

import numpy as np

from dpo_diag.losses.registry import LOSSES, Loss, Pairs, Values, no_floor
from dpo_diag.losses.spec import LossSpec


def _zero_under_reverse_kl(spec: LossSpec) -> float | None:
    # Other divergences bound the scores, and the infimum then depends on their bounds.
    return 0.0 if spec.f_divergence_type == "reverse_kl" else None


def sigmoid(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(logits); TRL 1.16 ignores label smoothing here."""
    return -pairs.ops.log_sigmoid(pairs.logits(spec))


def sigmoid_norm(spec: LossSpec, pairs: Pairs) -> Values:
    """The same with each score divided by its response's tokens."""
    return -pairs.ops.log_sigmoid(pairs.logits(spec, per_token="sigmoid_norm"))


def smoothed(spec: LossSpec, pairs: Pairs, logits: Values) -> Values:
    """(1 - eps) L + eps L of the flipped pair."""
    eps = spec.label_smoothing
    if not eps:
        return -pairs.ops.log_sigmoid(logits)
    return -(1 - eps) * pairs.ops.log_sigmoid(logits) - eps * pairs.ops.log_sigmoid(-logits)


def smoothed_floor(spec: LossSpec) -> float:
    """The entropy of (1 - eps, eps), nats."""
    eps = spec.label_smoothing
    return float(-(1 - eps) * np.log1p(-eps) - (eps * np.log(eps) if eps > 0 else 0.0))


def cdpo(spec: LossSpec, pairs: Pairs) -> Values:
    """`smoothed` of beta times the difference of the scores."""
    return smoothed(spec, pairs, pairs.logits(spec))


def cdpo_turn(spec: LossSpec) -> float | None:
    """Where 1 - eps of the probability goes to chosen."""
    eps = spec.label_smoothing
    return float(np.log1p(-eps) - np.log(eps)) if eps > 0 else None


def robust(spec: LossSpec, pairs: Pairs) -> Values:
    """An unbiased estimate of the loss under label noise at the rate eps; unbounded below for eps above 0."""
    logits, eps = pairs.logits(spec), spec.label_smoothing
    return (-(1 - eps) * pairs.ops.log_sigmoid(logits) + eps * pairs.ops.log_sigmoid(-logits)) / (1 - 2 * eps)


def hinge(spec: LossSpec, pairs: Pairs) -> Values:
    """max(0, 1 - logits)."""
    return pairs.ops.at_least(1.0 - pairs.logits(spec), 0.0)


def exo_pair(spec: LossSpec, pairs: Pairs) -> Values:
    """KL from the policy's preference to the label's, smoothed by eps."""
    logits = pairs.logits(spec)
    won, lost = pairs.sigmoid(logits), pairs.sigmoid(-logits)
    clean, flipped = float(np.log1p(-spec.label_smoothing)), float(np.log(spec.label_smoothing))
    return won * (pairs.ops.log_sigmoid(logits) - clean) + lost * (pairs.ops.log_sigmoid(-logits) - flipped)


def discopop(spec: LossSpec, pairs: Pairs) -> Values:
    """A blend of logistic and exponential loss."""
    logits = pairs.logits(spec)
    mix = pairs.sigmoid(logits / spec.discopop_tau)
    return -pairs.ops.log_sigmoid(logits) * (1 - mix) + pairs.ops.exp(-logits) * mix


LOSSES.add("sigmoid", Loss(sigmoid, "DPO, arXiv 2305.18290", in_trl=True, floor=_zero_under_reverse_kl))
LOSSES.add("hinge", Loss(hinge, "SLiC, arXiv 2305.10425", in_trl=True))
LOSSES.add("exo_pair", Loss(exo_pair, "EXO, arXiv 2402.00856", in_trl=True, smooths=True, needs_smoothing=True))
LOSSES.add(
    "robust",
    Loss(
        robust,
        "rDPO, arXiv 2403.00409",
        in_trl=True,
        smooths=True,
        floor=lambda spec: None if spec.label_smoothing else 0.0,
    ),
)
LOSSES.add("discopop", Loss(discopop, "DiscoPOP, arXiv 2406.08414", in_trl=True, floor=no_floor))
LOSSES.add(
    "sigmoid_norm",
    Loss(
        sigmoid_norm,
        "SimPO's length normalisation, TRL 1.16",
        in_trl=True,
        floor=_zero_under_reverse_kl,
        per_token=True,
    ),
)
# Older TRL and other trainers call it sigmoid with label smoothing, which TRL 1.16's sigmoid ignores.
LOSSES.add(
    "cdpo",
    Loss(cdpo, "conservative DPO (Mitchell 2023)", smooths=True, floor=smoothed_floor, turns_at=cdpo_turn),
)
