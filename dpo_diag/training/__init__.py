"""Training with TRL, measured: drop-in trainers, fixed prompts, live guards. Importing this imports torch and TRL."""

from __future__ import annotations

from dpo_diag.models.borrowed import untouched_random_state
from dpo_diag.training.callbacks import FixedPromptCallback
from dpo_diag.training.dpo import DiagDPOTrainer
from dpo_diag.training.sft import DiagSFTTrainer

__all__ = ["DiagDPOTrainer", "DiagSFTTrainer", "FixedPromptCallback", "untouched_random_state"]
