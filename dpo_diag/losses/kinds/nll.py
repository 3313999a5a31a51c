"""The negative log-likelihood of chosen as a term beside a preference loss, in the three normalisations of public code.

A weight means another thing in each; `diagnosis.remedies.nll_weights` translates it.
"""

from __future__ import annotations

from dpo_diag.losses.registry import LOSSES, Loss, Pairs, Values
from dpo_diag.losses.spec import LossSpec


def sft(spec: LossSpec, pairs: Pairs) -> Values:
    """The mean over the batch's tokens: a pair's share is -sum_logp * pairs / (all chosen tokens)."""
    n = pairs.need("n_chosen", "sft")
    return -pairs.need("chosen_sum_logp", "sft") * (len(n) / pairs.ops.total(n))


def sft_per_sequence(spec: LossSpec, pairs: Pairs) -> Values:
    """The mean of each response over its own tokens."""
    n = pairs.ops.at_least(pairs.need("n_chosen", "sft_per_sequence"), 1.0)
    return -pairs.need("chosen_sum_logp", "sft_per_sequence") / n


def sft_sum(spec: LossSpec, pairs: Pairs) -> Values:
    """The sum over each response's tokens."""
    return -pairs.need("chosen_sum_logp", "sft_sum")


for _name, _formula, _source, _needs in (
    ("sft", sft, "RPO, arXiv 2404.19733, as TRL takes it: mean over the batch's tokens", ("n_chosen",)),
    ("sft_per_sequence", sft_per_sequence, "the same, mean per response: LLaMA-Factory, OpenRLHF", ("n_chosen",)),
    ("sft_sum", sft_sum, "the same, sum per response: Razin et al., arXiv 2410.08847", ()),
):
    LOSSES.add(
        _name,
        Loss(
            _formula,
            _source,
            in_trl=_name == "sft",
            preference=False,
            reference=False,
            needs=("chosen_sum_logp", *_needs),
        ),
    )
