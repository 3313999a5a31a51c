"""Losses made against likelihood displacement, where both log-probs fall while their difference grows; TRL has none."""

from __future__ import annotations

import math

from dpo_diag.losses.registry import LOSSES, Coefficient, Loss, Pairs, Values, no_floor
from dpo_diag.losses.spec import LossSpec


def _below_reference(pairs: Pairs) -> Values:
    """How far chosen lies below its reference (nats), 0 where it does not."""
    return pairs.ops.at_least(-pairs.a, 0.0)


def dpop(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(beta [a - b - lambda max(0, -a)])."""
    penalty = spec.coefficient("dpop", "dpop_lambda") * _below_reference(pairs)
    return -pairs.ops.log_sigmoid(spec.beta * (pairs.a - pairs.b - penalty))


def dpop_outside(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(beta [a - b] - lambda max(0, -a)): the same with lambda = beta times the other's."""
    penalty = spec.coefficient("dpop_outside", "dpop_outside_lambda") * _below_reference(pairs)
    return -pairs.ops.log_sigmoid(spec.beta * (pairs.a - pairs.b) - penalty)


def cal_dpo(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(a - b) + w [(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2]: beta only sets the targets.

    As tengxiao1/Cal-DPO (scripts/dpo_trainer.py) has it, with w = 0.5 and, in its configuration, a beta of 0.002.
    """
    target, weight = 0.5 / spec.beta, spec.coefficient("cal_dpo", "cal_dpo_weight")
    return -pairs.ops.log_sigmoid(pairs.a - pairs.b) + weight * ((pairs.a - target) ** 2 + (pairs.b + target) ** 2)


def bdpo(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(beta [a - log(lambda e^b + 1 - lambda)]): rejected is compared as a mixture with its reference, so
    that driving it to 0 gains no more than -log(1 - lambda). The paper's: -log sigmoid of beta times the log of chosen
    over lambda policy + (1 - lambda) reference of rejected, less the reference's own."""
    share = spec.coefficient("bdpo", "bdpo_lambda")
    odds = math.log(share) - math.log1p(-share)
    mixed = math.log1p(-share) - pairs.ops.log_sigmoid(-(pairs.b + odds))
    return -pairs.ops.log_sigmoid(spec.beta * (pairs.a - mixed))


def dpo_shift(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(beta [a - lambda b]): rejected's terms, policy and reference, count lambda times.

    Meaquadddd/DPO-Shift also moves lambda from 0.5, ..., 0.95 to 1 over the training, or back: `schedule=` does.
    """
    return -pairs.ops.log_sigmoid(spec.beta * (pairs.a - spec.coefficient("dpo_shift", "dpo_shift_lambda") * pairs.b))


LOSSES.add(
    "dpop",
    Loss(
        dpop,
        "DPOP (Smaug), arXiv 2402.13228: lambda inside beta",
        coefficients={"dpop_lambda": Coefficient(50.0, "the paper's, and PaddleNLP's default")},
    ),
)
LOSSES.add(
    "dpop_outside",
    Loss(
        dpop_outside,
        "DPOP with lambda outside beta, as some trainers have it",
        coefficients={"dpop_outside_lambda": Coefficient(5.0, "the paper's 50 times a beta of 0.1")},
    ),
)
LOSSES.add(
    "cal_dpo",
    Loss(
        cal_dpo,
        "Cal-DPO, arXiv 2412.14516",
        floor=no_floor,
        coefficients={"cal_dpo_weight": Coefficient(1.0, "both squares unweighted; tengxiao1/Cal-DPO has 0.5")},
    ),
)
LOSSES.add(
    "bdpo",
    Loss(
        bdpo,
        "bounded DPO, arXiv 2506.12725",
        coefficients={"bdpo_lambda": Coefficient(0.5, "the best of the paper's ablation", 0.0, 1.0, open=True)},
    ),
)
LOSSES.add(
    "dpo_shift",
    Loss(
        dpo_shift,
        "DPO-Shift, arXiv 2502.07599",
        coefficients={"dpo_shift_lambda": Coefficient(0.75, "the middle of its authors' sweep, 0.5 to 1", 0.0, 1.0)},
    ),
)
