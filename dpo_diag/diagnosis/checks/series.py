"""One logged metric as a series, the names that trainers give it, and where a loss starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ALIASES: dict[str, tuple[str, ...]] = {
    "rewards/accuracies": (
        "rewards/accuracies", "rewards/accuracy", "reward_accuracy", "accuracies", "accuracy", "acc", "acc_mean",
    ),
    "rewards/margins": ("rewards/margins", "rewards/margin", "reward_margin", "margins", "margin"),
    "rewards/chosen": ("rewards/chosen", "chosen_reward", "chosen_rewards", "rewards_chosen"),
    "rewards/rejected": (
        "rewards/rejected", "reject_reward", "rejected_reward", "rejected_rewards", "rewards_rejected",
    ),
    "logps/chosen": ("logps/chosen", "log_probs/chosen", "chosen_logps", "logp/chosen", "policy_chosen_logps"),
    "logps/rejected": (
        "logps/rejected", "log_probs/rejected", "rejected_logps", "logp/rejected", "policy_rejected_logps",
    ),
    "ce/chosen": ("ce/chosen", "chosen_cross_entropy_loss", "chosen_cross_entropy"),
    "ce/rejected": ("ce/rejected", "rejected_cross_entropy_loss", "rejected_cross_entropy"),
    "grad_norm": ("grad_norm", "gradient_norm", "grad/norm", "total_norm"),
    "learning_rate": ("learning_rate", "lr"),
    "loss": ("loss", "dpo_loss", "preference_loss"),
    "nll_loss": ("nll_loss", "sft_loss"),
    "entropy": ("entropy", "entropy/chosen"),
}  # fmt: skip
"""metric as TRL names it -> the names under which trainers log it."""


@dataclass(frozen=True)
class Series:
    """One metric of one split in step order. `fixed`: each value is over the same pairs (an evaluation set)."""

    name: str
    split: str
    steps: FloatArray
    values: FloatArray
    weights: FloatArray
    fixed: bool

    def __len__(self) -> int:
        return int(self.values.size)

    @property
    def finite(self) -> Series:
        keep = np.isfinite(self.values)
        return Series(self.name, self.split, self.steps[keep], self.values[keep], self.weights[keep], self.fixed)


@dataclass(frozen=True)
class Start:
    """The loss of a policy that equals its reference: known from the loss's definition, or assumed, and why."""

    value: float
    floor: float | None
    known: bool
    reason: str


def is_training(split: str) -> bool:
    """Whether a split's values come from training batches, by its name."""
    return split == "train" or split.startswith(("train_", "train/"))
