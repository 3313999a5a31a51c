"""Two tiny trainings through the drop-in trainers: one thread, float32, seconds; imported only by their cases."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from trl import SFTConfig

from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer
from tests.training.tiny import arguments, make_model, make_pairs, make_tokenizer


def train_dpo(folder: Path) -> Path:
    """Six steps of DPO on 11 pairs, evaluated on 10; returns the run."""
    torch.set_num_threads(1)
    DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), processing_class=make_tokenizer(), recorder=folder / "run",
        args=arguments(folder / "out", eval_strategy="steps", eval_steps=3, max_steps=6, beta=0.3, learning_rate=1e-2),
        train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=Dataset.from_list(make_pairs(10, seed=1)),
        extra_metrics=("top5", "greedy_logp"),
    ).train()  # fmt: skip
    return folder / "run"


def train_sft(folder: Path) -> Path:
    """Six steps of supervised training on 11 answers; returns the run."""
    torch.set_num_threads(1)
    rows = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in make_pairs(11)]
    settings = SFTConfig(
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        logging_steps=1, save_strategy="no", eval_strategy="steps", eval_steps=3, disable_tqdm=True,
        learning_rate=1e-2, per_device_train_batch_size=3, per_device_eval_batch_size=3, max_steps=6, seed=3,
        dataloader_pin_memory=False,
    )  # fmt: skip
    DiagSFTTrainer(
        model=make_model(1), args=settings, train_dataset=Dataset.from_list(rows), recorder=folder / "run",
        eval_dataset=Dataset.from_list(rows[:7]), processing_class=make_tokenizer(),
    ).train()  # fmt: skip
    return folder / "run"
