"""Numbers of a loss: its value per pair, its floor, its value at the reference."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from dpo_diag.errors import DiagError
from dpo_diag.losses.registry import LOSSES, FloatArray, Pairs, Values
from dpo_diag.losses.spec import LossSpec


def term_sum(spec: LossSpec, pairs: Pairs, only: Collection[str] | None = None) -> Values:
    """Loss of each pair, (pairs,), in whatever `pairs` holds; `only`: those of the spec's types.

    Raises:
        DiagError: a type without a per-pair value, or an input that it needs is missing.
    """
    total: Values = 0.0
    for kind, factor in zip(spec.types, spec.term_weights, strict=True):
        formula = LOSSES[kind].formula
        if only is not None and kind not in only:
            continue
        if formula is None:
            raise DiagError("this loss has no per-pair value", got=kind)
        total = total + factor * formula(spec, pairs)
    return total * pairs.need("weight", "use_weighting") if spec.use_weighting else total


def pair_losses(
    spec: LossSpec,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    n_chosen: npt.ArrayLike | None = None,
    n_rejected: npt.ArrayLike | None = None,
    chosen_sum_logp: npt.ArrayLike | None = None,
    rejected_sum_logp: npt.ArrayLike | None = None,
    weight: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
) -> FloatArray:
    """Loss of each pair, shape (pairs,), in float64; their mean is the batch's loss as TRL 1.16 reports it.

    Args:
        a, b: log-ratios to the reference of chosen and rejected (nats), shape (pairs,); any number where the loss has
            no reference.
        n_chosen, n_rejected: response tokens; which loss needs them, and the sums, `LossSpec.inputs` says.
        chosen_sum_logp, rejected_sum_logp: nats. The share per pair of sft, a mean over the batch's tokens, depends on
            which pairs are averaged together.
        weight: WPO weight of each pair; needed under `use_weighting`.
        beta: of each pair, for a loss whose pairs have their own.

    Raises:
        DiagError: a coupled loss, or an input that this loss needs is missing.
    """
    if spec.not_additive:
        raise DiagError("this loss has no per-pair value", got=spec.not_additive)
    # One shape for a and b: the Shapley split mixes them from two steps.
    first, second = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    optional = {
        "n_chosen": n_chosen, "n_rejected": n_rejected, "weight": weight, "beta": beta,
        "chosen_sum_logp": chosen_sum_logp, "rejected_sum_logp": rejected_sum_logp,
    }  # fmt: skip
    known: dict[str, Values] = {k: np.asarray(v, dtype=np.float64) for k, v in optional.items() if v is not None}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return np.asarray(term_sum(spec, Pairs(first, second, **known)), dtype=np.float64)


def loss_floor(spec: LossSpec) -> float | None:
    """Greatest lower bound of the loss over all (a, b); None if there is none or it is not known.

    An SFT term has floor 0 but cannot reach it together with the rest.
    """
    floors = [LOSSES[kind].floor(spec) for kind in spec.types]
    known = [floor * weight for floor, weight in zip(floors, spec.term_weights, strict=True) if floor is not None]
    return sum(known) if len(known) == len(floors) else None


def loss_turn(spec: LossSpec) -> float | None:
    """The margin beta (a - b) at which the loss of a pair is least and beyond which it rises (label smoothing); None
    where it goes on falling, or where other terms move the turn."""
    if len(spec.types) > 1:
        return None
    return LOSSES[spec.types[0]].turns_at(spec)


def loss_at_reference(spec: LossSpec) -> float:
    """The loss of a policy that equals its reference (a = b = 0): ln 2 for sigmoid. Terms that compare nothing are out,
    and so are those without a reference: NaN where none is left of a preference loss.

    Raises:
        DiagError: a type that couples the pairs of a batch.
    """
    zero, one = np.zeros(1), np.ones(1)
    # At a = b = 0 lengths and weights cancel: any will do.
    pairs = Pairs(zero, zero, n_chosen=one, n_rejected=one, weight=one, beta=spec.beta * one)
    preference = [kind for kind in spec.types if LOSSES[kind].preference]
    compared = [kind for kind in preference if LOSSES[kind].reference]
    if preference and not compared:
        return float("nan")
    return float(term_sum(spec, pairs, compared)[0]) if compared else 0.0
