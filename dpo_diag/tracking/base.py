"""What a tracker must do, the registry of trackers, and the names that all of them use."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from dpo_diag.registry import Registry

OUTPUTS = "outputs"
"""Name of the table of answers in a tracker."""
PAIRS = "pairs"
"""Name of the table of the pairs that carry the change."""
CHECKS = "checks"
"""Name of the table of checks."""
REPORT = "report"
"""Name of the page, report.html, in a tracker."""
STEP = "train/global_step"
"""The x axis of every chart: optimizer steps done, as transformers names it. A tracker's own step counts log calls."""


class Tracker(Protocol):
    """One run's mirror: `start` once, then `log` and `log_outputs`, then `finish`. Any may raise; see `SafeTracker`.

    A tracker that can show more has these methods, too; they are called where they exist:

    - `alert(step, title, text, level)`: what a live guard or a watched run says; level is "warn" or "error".
    - `adopt()`: whether the client has a run open in this process, which is its user's; alerts go there from then on.
    - `abandon()`: the process ends, and the client's service does not: what would outlive it is ended.
    - `log_findings(findings)`: verdict, checks, pairs, best values and report.html (`dpo_diag.tracking.findings`).
    """

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Open the run. Secret-looking values of `config` are not sent.

        Returns: where it went, for run.json: kind, name, and as they apply mode, project, url, folder, how to send it
            (`send`), how to look at it (`show`), and why it went elsewhere than asked for (`failed`).
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
        project, entity, group, job_type, tags: as W&B's; a group of None takes WANDB_RUN_GROUP.
        mode: "offline" (files in the run folder), "online" or "disabled".
        start_timeout, finish_timeout: seconds that a service may take before the run goes on without it.
        earlier: what `start` returned when this run folder was tracked before; the tracker goes on with that run.
    """

    project: str = "dpo_diag"
    mode: str = "offline"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    job_type: str | None = None
    start_timeout: float = 10.0
    finish_timeout: float = 30.0
    earlier: Mapping[str, Any] = field(default_factory=dict)

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


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys, for trackers whose parameters are flat; lists stay as they are."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out.update(flat(value, f"{name}."))
        else:
            out[name] = value
    return out


def inside(path: Path, folder: Path) -> str:
    """The path relative to the folder where it lies in it: run folders move between machines."""
    try:
        return str(path.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(path)
