"""Losses in which each pair has a beta of its own."""

from __future__ import annotations

from dpo_diag.losses.registry import LOSSES, Coefficient, Loss, Pairs, Values
from dpo_diag.losses.spec import LossSpec


def epsilon_dpo(spec: LossSpec, pairs: Pairs) -> Values:
    """-log sigmoid(beta_i [a - b]), beta_i = beta / (1 + s epsilon) with s of -1, 0 or 1 (`training.epsilon_dpo`).

    Label smoothing is not used: in the authors' code (oddqueue/e-dpo, `dpo_loss`) its two terms are one and the same.
    """
    return -pairs.ops.log_sigmoid(pairs.need("beta", "epsilon_dpo") * (pairs.a - pairs.b))


LOSSES.add(
    "epsilon_dpo",
    Loss(
        epsilon_dpo,
        "ε-DPO, arXiv 2502.13177",
        needs=("beta",),
        coefficients={"epsilon": Coefficient(0.01, "its authors' default and examples", 0.0, 1.0, open=True)},
    ),
)
