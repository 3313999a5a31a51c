"""What transformers' Trainer writes and prints, by training with it: state file, TensorBoard events, console."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.importers.conftest import Importing
from tests.importers.reading import steps, value

_SCRIPT = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1))
rows = [{"input_ids": torch.tensor([i % 16, 1, 2, 3]), "labels": torch.tensor([i % 16, 1, 2, 3])} for i in range(24)]
args = TrainingArguments("out", per_device_train_batch_size=4, num_train_epochs=2, logging_steps=2,
                         eval_strategy="steps", eval_steps=3, save_strategy="no", report_to="tensorboard",
                         use_cpu=True, disable_tqdm=False)
trainer = Trainer(model, args, train_dataset=rows, eval_dataset={"a": rows[:8], "b": rows[8:]})
trainer.train()
trainer.save_state()
"""


@pytest.mark.slow
def test_the_three_records_of_one_training_agree(tmp_path: Path, imported: Importing) -> None:
    """12 steps, a row every 2, two evaluation sets every 3: the console's steps are those of the state file."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=250
    )
    assert done.returncode == 0, done.stdout[-2000:]
    (tmp_path / "train.log").write_bytes(done.stdout)
    state = next((tmp_path / "out").glob("trainer_state.json"))
    history = json.loads(state.read_text())["log_history"]
    result, run = imported(state)
    assert steps(run, "loss") == [2, 4, 6, 8, 10, 12]
    assert steps(run, "loss", "eval_a") == steps(run, "loss", "eval_b") == [3, 6, 9, 12]
    assert value(run, "loss", 4) == next(r["loss"] for r in history if r.get("step") == 4 and "loss" in r)
    assert (result["summary_rows"], result["skipped"]) == (1, [])
    result, console = imported(tmp_path / "train.log")
    assert result["format"] == "console"
    for split in ("train", "eval_a", "eval_b"):
        assert steps(console, "loss", split) == steps(run, "loss", split)
        for step in steps(run, "loss", split):
            assert value(console, "loss", step, split) == pytest.approx(value(run, "loss", step, split), rel=1e-3)
    result, merged = imported(tmp_path / "out")
    assert sorted({Path(f).name.split(".")[0] for f in result["merged"]}) == ["events", "trainer_state"]
    assert not any("differ" in note for note in result["notes"])
    assert steps(merged, "loss") == steps(run, "loss")
