"""SFT from scratch on the task's questions: its rows, its recipe, and the model that it saves."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.config import TaskConfig
from dpo_diag.tasks.sql.questions import generate_questions
from dpo_diag.tasks.sql.stream import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, Any]


def sft_rows(task: TaskConfig) -> list[Row]:
    """The SFT set, in the order of generation: {"prompt", "completion"} rows, steps x batch of them."""
    questions = generate_questions("sft", task.sft_steps * task.sft_batch_size, seed=task.data_seed, unique=False)
    stream = Stream("planted error", task.data_seed)
    rows = []
    for q in questions:
        gold = q.gold
        if ">=" in gold and stream.below(10_000) < round(task.planted_error * 10_000):
            gold = gold.replace(">=", ">")
        rows.append({"prompt": q.prompt, "completion": " " + gold})
    return rows


def build_tokenizer(task: TaskConfig) -> PreTrainedTokenizerFast:
    """The task's tokenizer, trained on the SFT set."""
    from dpo_diag.tasks.sql.tokenizer import train_tokenizer

    return train_tokenizer((r["prompt"] + r["completion"] for r in sft_rows(task)), vocab_size=task.vocab_size)


def sft_arguments(task: TaskConfig, output_dir: str | os.PathLike[str], **overrides: Any) -> Any:
    """The SFTConfig of the case. On a CPU bf16 and activation (gradient) checkpointing, which TRL has on, are off: 10
    times slower."""
    import torch
    from trl import SFTConfig

    # transformers' newer name for it, the older one being deprecated there.
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": task.sft_steps,
        "per_device_train_batch_size": task.sft_batch_size,
        "learning_rate": task.sft_learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": task.sft_warmup_steps,
        "weight_decay": 0.01,
        "adam_beta2": task.sft_adam_beta2,
        "max_grad_norm": 1.0,
        "completion_only_loss": True,
        "max_length": 256,
        "seed": task.sft_seed,
        "data_seed": task.sft_seed,
        "bf16": False,
        checkpointing: False,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 20,
        "dataloader_pin_memory": False,
    }
    return SFTConfig(**{**settings, **overrides})


def train_sft(
    folder: Path, task: TaskConfig, trainer_class: Any, trainer_kwargs: Mapping[str, Any], progress: bool
) -> Row:
    """Train from scratch, save model and tokenizer under folder/model; returns facts.

    The caller's random states are left as they were: a cache miss must not change what it draws next. The trainer's
    printed rows go to standard error; standard output belongs to the command.
    """
    from datasets import Dataset

    from dpo_diag.models.borrowed import untouched_random_state
    from dpo_diag.tasks.sql.model import build_model

    if trainer_class is None:
        from trl import SFTTrainer

        trainer_class = SFTTrainer
    started, cpu_started = time.monotonic(), time.process_time()
    tokenizer = build_tokenizer(task)
    model = build_model(task, tokenizer)
    quiet: dict[str, Any] = {} if progress else {"disable_tqdm": True, "logging_strategy": "no"}
    with (
        tempfile.TemporaryDirectory() as scratch,
        untouched_random_state(),
        contextlib.redirect_stdout(sys.stderr),
    ):
        trainer = trainer_class(
            model=model,
            args=sft_arguments(task, scratch, **quiet),
            train_dataset=Dataset.from_list(sft_rows(task)),
            processing_class=tokenizer,
            **trainer_kwargs,
        )
        result = trainer.train()
    model = trainer.model
    model.to("cpu")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {
        "train_loss": float(result.training_loss),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_tokens": len(tokenizer),
        "wall_seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu_started, 2),
    }


def load_sft(model_dir: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Model and tokenizer of a saved folder, float32, on the CPU; never from the hub."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
