"""What a tracker must do, the registry of trackers, and the names that all of them use."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from dpo_diag.registry import Registry

OUTPUTS = "outputs"
"""Name of the table of answers in a tracker."""
STEP = "train/global_step"
"""The x axis of every chart: optimizer steps done, as transformers names it. A tracker's own step counts log calls."""


class Tracker(Protocol):
    """One run's mirror: `start` once, then `log` and `log_outputs`, then `finish`. Any may raise; see `safe`."""

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Open the run. Secret-looking values of `config` are not sent.

        Returns: where it went, for run.json: kind, name, and as they apply mode, project, url, folder, how to send it.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars at an optimizer step; names as `metric_name` gives them. NaN is sent as it is."""

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        """The answers (`Run.outputs` rows) as one table: a row per prompt, a column per checkpoint."""

    def finish(self, status: str = "finished") -> None:
        """Close the run; another one may be started in the same process. `status` as in run.json."""


@dataclass(frozen=True)
class TrackerOptions:
    """What conf/tracking says beside the kind; a tracker uses what applies to it.

    Attributes:
        project, entity, group, tags: as W&B's; a group of None takes WANDB_RUN_GROUP.
        mode: "offline" (files in the run folder), "online" or "disabled".
    """

    project: str = "dpo_diag"
    mode: str = "offline"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def run_group(self) -> str | None:
        """The group, read from the environment at each run: wandb itself reads it once per process."""
        return self.group or os.environ.get("WANDB_RUN_GROUP")


TRACKERS: Registry[Callable[[TrackerOptions], Tracker]] = Registry("tracker", "dpo_diag.tracking")
"""`tracking.kind` -> what makes the tracker. A plugin adds its own: TRACKERS.add("name", MyTracker)."""


class NoTracker:
    """Tracks nothing."""

    def __init__(self, options: TrackerOptions | None = None) -> None:
        pass

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        return {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        return None

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        return None

    def finish(self, status: str = "finished") -> None:
        return None


TRACKERS.add("none", NoTracker)


def metric_name(split: str, name: str) -> str:
    """A history row's name in a tracker: `train/loss`, `eval/ppl_token/chosen`, `held_out/score/accuracy`."""
    return f"{split}/{name}"


def unique_name(folder: str | os.PathLike[str]) -> str:
    """A name that no other run has: the last three parts of the folder, and six hex digits of path, process and time.

    trackio appends to a run of the same name, so a second training or a second mirror must not share one.
    """
    path = Path(folder).resolve()
    parts = path.parts[-3:]
    if "runs" in path.parts:
        parts = path.parts[len(path.parts) - path.parts[::-1].index("runs") :] or parts
    seed = f"{path}|{os.getpid()}|{time.time_ns()}"
    return f"{'-'.join(parts)}-{hashlib.sha256(seed.encode()).hexdigest()[:6]}"
