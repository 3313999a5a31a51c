"""From our configuration to TRL's DPOConfig and SFTConfig, each key once; the rest goes through `trainer.args`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig, SFTConfig

from dpo_diag.config import Config
from dpo_diag.errors import DiagError, did_you_mean

_OURS = {"batch_size": "per_device_train_batch_size", "eval_batch_size": "per_device_eval_batch_size"}
_SAME = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "max_length",
    "truncation_mode",
    "optim",
    "weight_decay",
    "logging_steps",
    "eval_steps",
    "save_total_limit",
)


def on_accelerator(device: str) -> bool:
    """Whether training runs on a GPU; `device` is auto, cpu, cuda or mps."""
    if device == "auto":
        return torch.cuda.is_available() or torch.backends.mps.is_available()
    return device != "cpu"


def _common(config: Config, folder: Path, has_eval: bool) -> dict[str, Any]:
    t = config.trainer
    gpu = on_accelerator(config.model.device)
    known = {name: getattr(t, name) for name in _SAME} | {theirs: getattr(t, ours) for ours, theirs in _OURS.items()}
    # TRL turns both on by default: right on a GPU, about ten times slower on a CPU.
    bf16 = gpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported() if t.bf16 is None else t.bf16
    checkpointing = gpu if t.gradient_checkpointing is None else t.gradient_checkpointing
    return known | {
        "output_dir": str(folder / "checkpoints"),
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": bf16,
        "gradient_checkpointing": checkpointing,
        "use_cpu": not gpu,
        "report_to": [],
        "eval_strategy": "steps" if has_eval else "no",
        "save_strategy": "no" if t.save_steps is None else "steps",
        "save_steps": t.save_steps or 500,
        "dataloader_pin_memory": gpu,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "disable_tqdm": os.environ.get("DPO_DIAG_PROGRESS", "1") == "0",
    }


def _with_extra(known: dict[str, Any], extra: dict[str, Any], target: type) -> dict[str, Any]:
    """`trainer.args` on top, each key checked against TRL's own fields."""
    fields = {f.name for f in dataclasses.fields(target) if f.init}
    for key in extra:
        if key not in fields:
            raise DiagError(
                "unknown argument", where=f"trainer.args.{key}", expected=f"a field of {target.__name__}",
                hint=did_you_mean(key, fields), usage=True,
            )  # fmt: skip
    return known | extra


def dpo_arguments(config: Config, folder: Path, has_eval: bool = True) -> DPOConfig:
    """DPOConfig of a run whose folder is `folder`."""
    loss = config.loss
    known = _common(config, folder, has_eval) | {
        "loss_type": list(loss.types),
        "loss_weights": list(loss.weights) or None,
        "beta": loss.beta,
        "label_smoothing": loss.label_smoothing,
        "f_divergence_type": loss.f_divergence_type,
        "f_alpha_divergence_coef": loss.f_alpha_divergence_coef,
        "discopop_tau": loss.discopop_tau,
        "ld_alpha": loss.ld_alpha,
        "use_weighting": loss.use_weighting,
        "disable_dropout": config.trainer.disable_dropout,
        "precompute_ref_log_probs": config.trainer.precomputes_reference,
    }
    return DPOConfig(**_with_extra(known, dict(config.trainer.args), DPOConfig))


def sft_arguments(config: Config, folder: Path, has_eval: bool = True) -> SFTConfig:
    """SFTConfig of a run whose folder is `folder`; only the completion is in the loss, or every turn of the assistant,
    which this project's masks say: TRL's swaps the chat template, and knows few."""
    known = _common(config, folder, has_eval) | {"completion_only_loss": True}
    ours = {"assistant_only_loss": False} if config.trainer.assistant_only else {}
    return SFTConfig(**_with_extra(known, dict(config.trainer.args), SFTConfig) | ours)
