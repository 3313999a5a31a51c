"""Mirrors a training's log calls to a tracker while it runs; the records stay the truth and need none of this."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dpo_diag.config import Config
from dpo_diag.records import RunWriter, load_run
from dpo_diag.tracking import make_tracker, metric_name, unique_name
from dpo_diag.training.progress import evaluation_prefix


def named(logs: dict[str, Any]) -> dict[str, float]:
    """A log call's numbers under the tracker's names, `train/loss`, `eval/ppl_seq_mean/chosen`, `held_out/score/...`.

    What is no number (a string, None) is left out.
    """
    prefix = evaluation_prefix(logs)
    out = {}
    for key, value in logs.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if "_score/" in key:
            split, _, score = key.removeprefix("eval_").rpartition("_score/")
            out[metric_name(split, f"score/{score}")] = float(value)
        elif prefix is not None and key.startswith(prefix):
            out[metric_name(prefix.rstrip("_"), key.removeprefix(prefix))] = float(value)
        elif prefix is None or not key.startswith("eval_"):  # TRL names a set's metrics without the set once more
            out[metric_name("train", key)] = float(value)
    return out


class TrackerCallback(TrainerCallback):
    """Rank 0 mirrors; a tracker that fails warns once (`dpo_diag.tracking.safe`) and training goes on."""

    def __init__(self, config: Config, folder: Path, trainer: Any) -> None:
        t = config.tracking
        self.tracker = make_tracker(
            t.kind, project=t.project, mode=t.mode, entity=t.entity, group=t.group, tags=list(t.tags)
        )
        self.config, self.folder, self.trainer = dataclasses.asdict(config), folder, trainer
        self.name = t.name or unique_name(folder)
        self.open = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the tracker's run and note in run.json where it is."""
        self.open = True
        where = self.tracker.start(self.config, self.name, self.folder)
        writer: RunWriter | None = self.trainer.run_writer
        if writer is not None:
            writer.update(tracking=where)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Every log call, training and evaluation."""
        if self.open and logs:
            self.tracker.log(state.global_step, named(logs))

    def close(self, status: str) -> None:
        """The outputs as one table with a column per checkpoint, then the end; called once, whatever happened."""
        if not self.open:
            return
        self.open = False
        if status == "finished":
            self.tracker.log_outputs(load_run(self.folder).outputs)
        self.tracker.finish(status)
