"""Replay a finished run's records into a tracker: for runs that were not tracked live, scored or imported."""

from __future__ import annotations

from typing import Any

import yaml

from dpo_diag.records import Run
from dpo_diag.text import plain
from dpo_diag.tracking.base import Tracker, metric_name, unique_name

NOT_CONFIG = ("packages", "tracking")


def mirror(run: Run, tracker: Tracker, name: str | None = None) -> dict[str, Any]:
    """Send history (in step order, one call per step), outputs, and the end; returns what `start` returned.

    Args:
        name: the run's name there; None makes a unique one from the folder.

    The config is the composed Hydra config where the run has one, with run.json beside it under `run`.
    """
    where = tracker.start(run_config(run), name or unique_name(run.path), run.path)
    history = run.history
    named = history.assign(name=[metric_name(s, n) for s, n in zip(history["split"], history["name"], strict=True)])
    for step in sorted(named["step"].unique().tolist()):
        rows = named.loc[named["step"] == step]
        values = dict(zip(rows["name"], rows["value"].astype(float), strict=True))
        epochs = rows["epoch"].dropna()
        if len(epochs):
            values["train/epoch"] = float(epochs.iloc[-1])
        tracker.log(step, values)
    if run.has("outputs"):
        tracker.log_outputs(run.outputs)
    tracker.finish(run.info.status or "finished")
    return where


def run_config(run: Run) -> dict[str, Any]:
    """What a tracker shows as the config: .hydra/config.yaml, and run.json under `run` (without package versions)."""
    config: dict[str, Any] = {}
    file = run.path / ".hydra" / "config.yaml"
    if file.is_file():
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        config = loaded if isinstance(loaded, dict) else {}
    meta = {k: v for k, v in run.meta.items() if k not in NOT_CONFIG}
    return {**config, "run": plain(meta)}
