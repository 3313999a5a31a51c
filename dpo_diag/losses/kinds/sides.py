"""Losses that look at each side's own distance to the reference, and so hold chosen where it is."""

from __future__ import annotations

from dpo_diag.losses.registry import LOSSES, Loss, Pairs, Values, no_floor
from dpo_diag.losses.spec import LossSpec


def ipo(spec: LossSpec, pairs: Pairs) -> Values:
    """Squared distance of the difference of per-token scores to 1 / (2 tau)."""
    delta = pairs.logits(spec, per_token="ipo") / spec.beta
    return (delta - 1.0 / (2.0 * spec.beta)) ** 2


def sppo_hard(spec: LossSpec, pairs: Pairs) -> Values:
    """Squared distances of a to 1 / (2 beta) and of b to its negative."""
    return (pairs.a - 0.5 / spec.beta) ** 2 + (pairs.b + 0.5 / spec.beta) ** 2


def nca_pair(spec: LossSpec, pairs: Pairs) -> Values:
    """Noise contrastive alignment: chosen up, both pulled back to the reference."""
    log_sigmoid, a, b = pairs.ops.log_sigmoid, spec.beta * pairs.a, spec.beta * pairs.b
    return -log_sigmoid(a) - 0.5 * log_sigmoid(-a) - 0.5 * log_sigmoid(-b)


def apo_zero(spec: LossSpec, pairs: Pairs) -> Values:
    """Chosen up, rejected down, each bounded."""
    return pairs.sigmoid(-spec.beta * pairs.a) + pairs.sigmoid(spec.beta * pairs.b)


def apo_down(spec: LossSpec, pairs: Pairs) -> Values:
    """Chosen down, rejected down further."""
    return pairs.sigmoid(spec.beta * pairs.a) + pairs.sigmoid(-spec.beta * (pairs.a - pairs.b))


LOSSES.add("ipo", Loss(ipo, "IPO, arXiv 2310.12036", in_trl=True, per_token=True))
LOSSES.add("nca_pair", Loss(nca_pair, "NCA, arXiv 2402.05369", in_trl=True, floor=no_floor))
LOSSES.add("sppo_hard", Loss(sppo_hard, "SPPO, arXiv 2405.00675", in_trl=True))
LOSSES.add("apo_zero", Loss(apo_zero, "APO, arXiv 2408.06266", in_trl=True))
LOSSES.add("apo_down", Loss(apo_down, "APO, arXiv 2408.06266", in_trl=True))
