"""trackio: a local dashboard over one SQLite file per project."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.extras import require
from dpo_diag.records.secrets import without_secrets
from dpo_diag.tracking.base import CHECKS, OUTPUTS, PAIRS, STEP, TRACKERS, TrackerOptions
from dpo_diag.tracking.findings import Findings
from dpo_diag.tracking.outputs_table import outputs_table


class TrackioTracker:
    """Mirrors scalars and the outputs table to trackio. It has no `define_metric`: choose train/global_step as x axis.

    trackio keeps its files in TRACKIO_DIR (by default the user's cache), all projects together, and appends to a run of
    the same name: give a unique one (`unique_name`).
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self._run: Any = None

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """See `Tracker.start`."""
        require("trackio", "tracking with trackio")
        import trackio

        before = trackio.context_vars.current_run.get()
        with contextlib.redirect_stdout(io.StringIO()):  # stdout may be promised to one JSON document
            self._run = trackio.init(
                project=self.options.project,
                name=run_name,
                group=self.options.run_group,
                config=without_secrets(dict(config)),
                resume="allow",
                embed=False,
            )
        # trackio keeps one current run for the process: leave the user's own as it was (ours would also be finished
        # and announced a second time at exit).
        trackio.context_vars.current_run.set(before)
        return {
            "kind": "trackio",
            "project": self.options.project,
            "name": run_name,
            "show": f"trackio show --project {self.options.project}",
        }

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log({**values, STEP: step})

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        """See `Tracker.log_outputs`; nothing without answers."""
        self._table(OUTPUTS, outputs_table(outputs))

    def log_findings(self, findings: Findings) -> None:
        """What wandb would call a summary as one row, and two tables; trackio shows no page."""
        self._run.log(dict(findings.summary))
        self._table(CHECKS, findings.checks)
        self._table(PAIRS, findings.pairs)

    def _table(self, name: str, table: pd.DataFrame) -> None:
        import trackio

        if len(table):
            self._run.log({name: trackio.Table(dataframe=table)})

    def adopt(self) -> bool:
        """See `Tracker`."""
        client = sys.modules.get("trackio")
        self._run = None if client is None else client.context_vars.current_run.get()
        return self._run is not None

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> None:
        """trackio's own alert, which its dashboard shows."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # it prints the alert, which the training has said already
            self._run.alert(title, text, level=trackio.AlertLevel[level.upper()])

    def finish(self, status: str = "finished") -> None:
        """See `Tracker.finish`; trackio keeps no status."""
        run, self._run = self._run, None
        if run is not None:
            with contextlib.redirect_stdout(io.StringIO()):
                run.finish()


TRACKERS.add("trackio", TrackioTracker)
