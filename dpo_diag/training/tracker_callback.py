"""Mirrors a training's log calls to a tracker while it runs; the records stay the truth and need none of this."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dpo_diag.config import Config
from dpo_diag.records import RunWriter, load_run
from dpo_diag.records.tracked import tracked_places
from dpo_diag.tracking import Session, live_kinds, metric_name, unique_name
from dpo_diag.tracking.mirror import shown_config
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
        of_answers = next((kind for kind in ("score/", "kl/") if f"_{kind}" in key), None)
        if of_answers is not None:
            split, _, name = key.removeprefix("eval_").rpartition(f"_{of_answers}")
            out[metric_name(split, of_answers + name)] = float(value)
        elif prefix is not None and key.startswith(prefix):
            out[metric_name(prefix.rstrip("_"), key.removeprefix(prefix))] = float(value)
        elif prefix is None or not key.startswith("eval_"):  # TRL names a set's metrics without the set once more
            out[metric_name("train", key)] = float(value)
    return out


class TrackerCallback(TrainerCallback):
    """Rank 0 mirrors; a tracker that fails warns once (`dpo_diag.tracking.safe`) and training goes on.

    Made before the training opens its records: a resumed one cuts them back to its checkpoint, and what they held until
    then is what the trackers hold.
    """

    def __init__(self, config: Config, folder: Path, trainer: Any) -> None:
        t = config.tracking
        self.before = load_run(folder) if config.resume else None
        earlier = tracked_places(self.before.meta.get("tracking")) if self.before is not None else {}
        self.session = Session(
            live_kinds(t.kind), folder, earlier, project=t.project, mode=t.mode, entity=t.entity, group=t.group,
            tags=list(t.tags), job_type=t.job_type, start_timeout=t.start_timeout, finish_timeout=t.finish_timeout,
        )  # fmt: skip
        if self.before is not None:
            self.session.resumed_after(self.before)
        self.config, self.folder, self.trainer = shown_config(dataclasses.asdict(config)), folder, trainer
        known = next((place["name"] for place in earlier.values() if place.get("name")), None)
        self.name = t.name or known or unique_name(folder)
        self.waiting: list[tuple[int, str, str]] = []
        self.open = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the trackers' runs and note in run.json where they are."""
        self.open = True
        places = self.session.start(self.config, self.name)
        writer: RunWriter | None = self.trainer.run_writer
        if writer is not None:
            writer.update(tracking=places)
        for alert in self.waiting:
            self.session.alert(*alert)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Every log call, training and evaluation."""
        if self.open and logs:
            self.session.log(state.global_step, named(logs))

    def alert(self, step: int, code: str, message: str) -> None:
        """What a live guard says; before the training has begun it waits for the trackers."""
        if self.open:
            self.session.alert(step, code, message)
        else:
            self.waiting.append((step, code, message))

    def close(self, status: str) -> None:
        """What was not sent yet of the records, the answers and what was found in them; then the end. Called once,
        whatever happened."""
        if not self.open:
            return
        self.open = False
        if status == "finished":
            self.session.send_rest(load_run(self.folder))
        self.session.close(status)
