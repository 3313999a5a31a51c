"""W&B: offline unless asked, one W&B run per training even with several trainings in one process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.extras import require
from dpo_diag.records.secrets import without_secrets
from dpo_diag.tracking.base import OUTPUTS, STEP, TRACKERS, TrackerOptions
from dpo_diag.tracking.outputs_table import outputs_table


class WandbTracker:
    """Mirrors scalars against the optimizer step and the outputs as one table; what is written offline is sent later
    with `wandb sync`.
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self._run: Any = None

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """See `Tracker.start`; the W&B files lie in FOLDER/wandb."""
        require("wandb", "tracking with W&B")
        import wandb

        Path(folder).mkdir(parents=True, exist_ok=True)
        # create_new: two trainings in one process would otherwise be merged, and a run that the user's own script has
        # open would be taken over. console off: a sweep's jobs share one console.
        options = self.options
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.run_group,
            tags=options.tags or None,
            name=run_name,
            dir=str(folder),
            config=without_secrets(dict(config)),
            mode=options.mode,  # type: ignore[arg-type]
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, disable_code=True, login_timeout=30),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        where = {
            "kind": "wandb",
            "mode": options.mode,
            "project": options.project,
            "name": run_name,
            "id": self._run.id,
            "url": self._run.url if options.mode == "online" else None,
            "folder": _inside(Path(self._run.dir).parent, Path(folder)),
        }
        if options.mode == "offline":
            where["send"] = f"wandb sync {Path(folder) / str(where['folder'])}"
        return {k: v for k, v in where.items() if v is not None}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`. Rows keep their own step; W&B's counter only orders the calls."""
        self._run.log({**values, STEP: step})

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        """See `Tracker.log_outputs`; nothing without answers."""
        import wandb

        table = outputs_table(outputs)
        if len(table):
            self._run.log({OUTPUTS: wandb.Table(dataframe=table)})

    def finish(self, status: str = "finished") -> None:
        """See `Tracker.finish`; any status but finished is a failed run in W&B."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=0 if status == "finished" else 1)


def _inside(path: Path, folder: Path) -> str:
    """The path relative to the folder where it lies in it: run folders move between machines."""
    try:
        return str(path.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(path)


TRACKERS.add("wandb", WandbTracker)
