"""A tracker: lines of a file in the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TextIO

import pandas as pd

from dpo_diag.tracking import TRACKERS, Findings, TrackerOptions


class FileTracker:
    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self.file: TextIO | None = None

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        self.file = open(f"{folder}/toy_tracker.txt", "w", encoding="utf-8")  # noqa: SIM115 - finish closes it
        return {"kind": "toy", "project": self.options.project}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        print(step, *sorted(values), file=self.file)

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        print(len(outputs), "answers", file=self.file)

    def log_findings(self, findings: Findings) -> None:
        print("harm", findings.summary["diag/harm"], findings.report is not None, file=self.file)

    def finish(self, status: str = "finished") -> None:
        if self.file:
            print(status, file=self.file)
            self.file.close()


TRACKERS.add("toy", FileTracker)
