"""Losses over the policy's log-probs alone: no reference is loaded or computed for them."""

from __future__ import annotations

from dpo_diag.losses.kinds.logistic import smoothed, smoothed_floor
from dpo_diag.losses.registry import LOSSES, Coefficient, Loss, Pairs, Values
from dpo_diag.losses.spec import LossSpec


def simpo(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(x), x = beta [mean log-prob of chosen - of rejected] - gamma; smoothed as TRL's CPO trainer does.

    TRL's `simpo_gamma` is this gamma; the paper's tables give gamma / beta beside it.
    """
    chosen, rejected = pairs.means("simpo")
    return smoothed(spec, pairs, spec.beta * (chosen - rejected) - spec.coefficient("simpo", "simpo_gamma"))


def cpo(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(beta [log-prob of chosen - of rejected]), summed over tokens; CPO adds an NLL term to it."""
    chosen, rejected = pairs.sums("cpo")
    return smoothed(spec, pairs, spec.beta * (chosen - rejected))


def orpo(spec: LossSpec, pairs: Pairs) -> Values:
    """-beta log sigmoid(log of the ratio of the odds p / (1 - p)), p = exp(mean log-prob); ORPO adds it to the NLL."""
    chosen, rejected = (pairs.ops.at_most(mean, _ALMOST_CERTAIN) for mean in pairs.means("orpo"))
    odds = chosen - rejected - (pairs.ops.log1mexp(chosen) - pairs.ops.log1mexp(rejected))
    return -spec.beta * pairs.ops.log_sigmoid(odds)


_ALMOST_CERTAIN = -1e-7
"""A mean log-prob above it counts as this: the odds of a probability of 1 are infinite, and so is their gradient."""
_SUMS = ("chosen_sum_logp", "rejected_sum_logp")
LOSSES.add(
    "simpo",
    Loss(
        simpo,
        "SimPO, arXiv 2405.14734",
        per_token=True,
        reference=False,
        needs=_SUMS,
        smooths=True,
        floor=smoothed_floor,
        coefficients={"simpo_gamma": Coefficient(1.0, "the paper's for Llama-3-Base at beta 2; TRL's default is 0.5")},
    ),
)
LOSSES.add(
    "cpo",
    Loss(
        cpo,
        "CPO, arXiv 2401.08417, without its NLL term",
        reference=False,
        needs=_SUMS,
        smooths=True,
        floor=smoothed_floor,
    ),
)
LOSSES.add("orpo", Loss(orpo, "ORPO's odds ratio, arXiv 2403.07691", per_token=True, reference=False, needs=_SUMS))
