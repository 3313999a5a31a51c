"""Training, measured: a callback for any trainer, a probe for any loop, drop-in trainers for TRL, live guards.

What is asked for is imported then: the callback and the probe need torch and transformers, the rest TRL of the version
in pyproject.toml.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpo_diag.models.borrowed import untouched_random_state
    from dpo_diag.training.callbacks import FixedPromptCallback
    from dpo_diag.training.diag_callback import DiagCallback
    from dpo_diag.training.dpo import DiagDPOTrainer
    from dpo_diag.training.probe import Probe
    from dpo_diag.training.sft import DiagSFTTrainer

__all__ = ["DiagCallback", "DiagDPOTrainer", "DiagSFTTrainer", "FixedPromptCallback", "Probe", "untouched_random_state"]

_HOMES = {
    "DiagCallback": "dpo_diag.training.diag_callback",
    "DiagDPOTrainer": "dpo_diag.training.dpo",
    "DiagSFTTrainer": "dpo_diag.training.sft",
    "FixedPromptCallback": "dpo_diag.training.callbacks",
    "Probe": "dpo_diag.training.probe",
    "untouched_random_state": "dpo_diag.models.borrowed",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
