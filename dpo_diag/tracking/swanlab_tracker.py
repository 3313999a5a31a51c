"""SwanLab: offline unless asked; what is written offline is sent later with `swanlab sync`."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.records.secrets import without_secrets
from dpo_diag.tracking.base import CHECKS, OUTPUTS, PAIRS, TRACKERS, TrackerOptions, inside
from dpo_diag.tracking.findings import Findings
from dpo_diag.tracking.markdown import markdown
from dpo_diag.tracking.outputs_table import outputs_table

FOLDER = "swanlab"


class SwanlabTracker:
    """Mirrors scalars against the optimizer step; verdict, alerts and tables as text (Markdown).

    SwanLab keeps one run per process: where the user's script has one open, this does not take its place.
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self._run: Any = None
        self._step = 0

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """See `Tracker.start`; the files lie in FOLDER/swanlab.

        Raises:
            DiagError: SwanLab is not installed, or tracks another run of this process.
        """
        require("swanlab", "tracking with SwanLab")
        import swanlab

        if swanlab.has_run():
            raise DiagError("SwanLab tracks another run of this process", hint="finish it first (swanlab.finish)")
        options, place = self.options, Path(folder) / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        with _quiet():
            self._run = swanlab.init(
                project=options.project,
                workspace=options.entity,
                name=run_name,
                group=options.run_group,
                job_type=options.job_type,
                tags=list(options.tags) or None,
                config=without_secrets(dict(config)),
                mode=options.mode,
                log_dir=str(place),
                # A command line may hold a token; a sweep's jobs share one console.
                settings=swanlab.Settings(probe={"runtime": False}, terminal={"proxy_type": "none"}),
                id=options.earlier.get("id") if options.mode == "online" else None,
                resume="allow" if options.earlier.get("id") and options.mode == "online" else None,
            )
        where = {
            "kind": "swanlab", "mode": options.mode, "project": options.project, "name": run_name, "id": self._run.id,
            "folder": inside(Path(self._run.dir), Path(folder)),
        }  # fmt: skip
        if options.mode == "offline":
            earlier = str(options.earlier.get("id") or "")
            line = ["swanlab", "sync", str(self._run.dir), *(["--id", earlier] if earlier else [])]
            where |= {"send": shlex.join(line), "id": earlier or self._run.id}
        return where

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._step = max(self._step, step)
        with _quiet():
            self._run.log({name: float(value) for name, value in values.items()}, step=step)

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        """See `Tracker.log_outputs`; nothing without answers."""
        self._text(OUTPUTS, markdown(outputs_table(outputs)) if len(outputs) else "", self._step)

    def log_findings(self, findings: Findings) -> None:
        """The summary's numbers as scalars of the last step, its words and the tables as text."""
        self.log(self._step, {k: v for k, v in findings.summary.items() if not isinstance(v, str)})
        for name, words in findings.summary.items():
            if isinstance(words, str):
                self._text(name, words, self._step)
        for name, table in ((CHECKS, findings.checks), (PAIRS, findings.pairs)):
            self._text(name, markdown(table) if len(table) else "", self._step)

    def adopt(self) -> bool:
        """See `Tracker`."""
        client = sys.modules.get("swanlab")
        self._run = client.get_run() if client is not None and client.has_run() else None
        return self._run is not None

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> None:
        """A text at the step: SwanLab has no alerts of a run's own."""
        self._text(f"alerts/{title}", f"{level}: {text}", step)

    def _text(self, name: str, text: str, step: int) -> None:
        import swanlab

        if text:
            with _quiet():
                self._run.log({name: swanlab.Text(text)}, step=step)

    def finish(self, status: str = "finished") -> None:
        """See `Tracker.finish`; any status but finished is a crashed run there."""
        run, self._run = self._run, None
        if run is not None:
            with _quiet():
                if status == "finished":
                    run.finish()
                else:
                    run.finish(state="crashed", error=status)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """SwanLab prints on standard output, which may be promised to one JSON document."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


TRACKERS.add("swanlab", SwanlabTracker)
