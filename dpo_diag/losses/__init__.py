"""Preference losses: how one is described (`LossSpec`, also the Hydra node), what each kind's value is per pair
(`LOSSES`, one entry a kind), and what follows from both. Training checks TRL's number with it, analysis splits a
change with it exactly. No torch here: the formulas take numpy arrays and torch tensors alike.
"""

from dpo_diag.losses.named import (
    NAMED,
    check_names,
    has_nll,
    has_no_reference,
    is_per_token,
    loss_name,
    names_of,
    start_of,
)
from dpo_diag.losses.registry import LOSSES, NUMPY, Coefficient, FloatArray, Loss, Ops, Pairs
from dpo_diag.losses.spec import DIVERGENCES, LossSpec
from dpo_diag.losses.values import loss_at_reference, loss_floor, loss_turn, pair_losses, term_sum

__all__ = [
    "DIVERGENCES",
    "LOSSES",
    "NAMED",
    "NUMPY",
    "Coefficient",
    "FloatArray",
    "Loss",
    "LossSpec",
    "Ops",
    "Pairs",
    "check_names",
    "has_nll",
    "has_no_reference",
    "is_per_token",
    "loss_at_reference",
    "loss_floor",
    "loss_name",
    "loss_turn",
    "names_of",
    "pair_losses",
    "start_of",
    "term_sum",
]
