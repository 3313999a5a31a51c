"""Losses that depend on which pairs stand together in a batch."""

from __future__ import annotations

from dpo_diag.losses.registry import LOSSES, Loss, Pairs, Values, no_floor
from dpo_diag.losses.spec import LossSpec


def sft(spec: LossSpec, pairs: Pairs) -> Values:
    """Negative log-likelihood of chosen, as the mean over the batch's tokens: a pair's share is
    -sum_logp * pairs / (all chosen tokens)."""
    n = pairs.need("n_chosen", "sft")
    return -pairs.need("chosen_sum_logp", "sft") * (len(n) / pairs.ops.total(n))


LOSSES.add("sft", Loss(sft, "RPO, arXiv 2404.19733", in_trl=True, preference=False))
for _name, _source in (
    ("bco_pair", "BCO, arXiv 2404.04656: a running mean of rewards"),
    ("aot", "AOT, arXiv 2406.05882: log-ratios sorted over the batch"),
    ("aot_unpaired", "AOT, arXiv 2406.05882: each side sorted over the batch"),
):
    LOSSES.add(_name, Loss(None, _source, in_trl=True, floor=no_floor))
