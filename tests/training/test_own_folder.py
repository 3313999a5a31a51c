"""Which of several numbered run folders a training goes on with."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from dpo_diag.records import RunWriter
from dpo_diag.records.process import process_began, this
from dpo_diag.records.run_lock import OWNER
from dpo_diag.training.own_folder import continued, unused


def run_of(folder: Path, losses: dict[int, float]) -> None:
    writer = RunWriter(folder)
    rows = [{"step": s, "split": "train", "name": "loss", "value": v} for s, v in losses.items()]
    writer.write("history", rows, split="train")


def log(losses: dict[int, float]) -> list[dict[str, float]]:
    """As transformers keeps it, with an evaluation and the end's summary between."""
    rows: list[dict[str, float]] = [{"step": s, "loss": v, "epoch": 0.1} for s, v in losses.items()]
    return [*rows, {"step": 2, "eval_loss": 7.0}, {"step": 2, "train_loss": 8.0}]


def test_the_folder_whose_losses_are_the_logs(tmp_path: Path) -> None:
    """Three runs; a resumed training's log names its own, and cuts no other one's rows."""
    runs = [tmp_path / name for name in ("run", "run-2", "run-3")]
    assert unused(runs[0]) == continued(runs[0], []) == runs[0]
    for run, losses in zip(runs, ({1: 0.7, 2: 0.6, 3: 0.5}, {1: 0.7, 2: 0.4}, {1: 0.9, 2: math.nan}), strict=True):
        run_of(run, losses)
    assert continued(runs[0], log({1: 0.7, 2: 0.6})) == runs[0]
    assert continued(runs[0], log({1: 0.7, 2: 0.4})) == runs[1]
    assert continued(runs[0], log({1: 0.9, 2: math.nan})) == runs[2]
    # The checkpoint was written at step 1: the first two may be it, and the later one is taken.
    assert continued(runs[0], log({1: 0.7})) == runs[1]
    # Of none of them: nobody's rows are cut. A log that tells nothing: the last one.
    assert continued(runs[0], log({1: 0.1})) == tmp_path / "run-4"
    assert continued(runs[0], []) == runs[2]
    # A run that was killed before its first log row may be it, but one that agrees is.
    run_of(tmp_path / "run-4", {})
    assert continued(runs[0], log({1: 0.7, 2: 0.6})) == runs[0]
    assert continued(runs[0], log({1: 0.1})) == tmp_path / "run-4"


def test_a_folder_that_another_training_begins_in_is_passed_over(tmp_path: Path) -> None:
    """The parent of this process is alive and holds `a`; a process that is gone holds nothing."""
    mine = this()
    parent = {"host": mine.host, "kernel": mine.kernel, "pid": os.getppid(), "began": process_began(os.getppid())}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / OWNER).write_text(json.dumps(parent))
    assert unused(tmp_path / "a") == tmp_path / "a-2"
    (tmp_path / "a" / OWNER).write_text(json.dumps(parent | {"began": 1}))
    assert unused(tmp_path / "a") == tmp_path / "a"
