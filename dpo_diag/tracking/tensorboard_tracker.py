"""TensorBoard: event files in the run folder, written without TensorFlow and without torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.extras import require
from dpo_diag.records.secrets import without_secrets
from dpo_diag.text import plain
from dpo_diag.tracking.base import CHECKS, OUTPUTS, PAIRS, TRACKERS, TrackerOptions
from dpo_diag.tracking.findings import Findings
from dpo_diag.tracking.markdown import markdown
from dpo_diag.tracking.outputs_table import outputs_table

FOLDER = "tensorboard"


class TensorboardTracker:
    """Mirrors scalars against the optimizer step; config, verdict, alerts and tables as text (Markdown).

    A run that is tracked again gets a further event file in the same folder, which TensorBoard reads as one run.
    """

    def __init__(self, options: TrackerOptions) -> None:
        self.options = options
        self._writer: Any = None
        self._step = 0

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """See `Tracker.start`; the events lie in FOLDER/tensorboard."""
        require("tensorboard", "tracking with TensorBoard")
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        target = Path(folder) / FOLDER
        self._writer = EventFileWriter(str(target))
        if not self.options.earlier:
            shown = json.dumps(plain(without_secrets(dict(config))), indent=2, ensure_ascii=False)
            self._text("config", "\n".join(f"    {line}" for line in shown.splitlines()), 0)
        return {"kind": "tensorboard", "name": run_name, "folder": FOLDER, "show": f"tensorboard --logdir {target}"}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`; a value is kept in float32, as TensorBoard keeps scalars."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._step = max(self._step, step)
        scalars = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._event(step, Summary(value=scalars))

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        """See `Tracker.log_outputs`; nothing without answers."""
        self._table(OUTPUTS, outputs_table(outputs))

    def log_findings(self, findings: Findings) -> None:
        """The summary's numbers as scalars of the last step, its words and the tables as text."""
        self.log(self._step, {k: v for k, v in findings.summary.items() if not isinstance(v, str)})
        for name, words in findings.summary.items():
            if isinstance(words, str):
                self._text(name, words, self._step)
        self._table(CHECKS, findings.checks)
        self._table(PAIRS, findings.pairs)

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> None:
        """A text at the step."""
        self._text(f"alerts/{title}", f"{level}: {text}", step)

    def finish(self, status: str = "finished") -> None:
        """See `Tracker.finish`."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _table(self, name: str, table: pd.DataFrame) -> None:
        if len(table):
            self._text(name, markdown(table), self._step)

    def _text(self, tag: str, text: str, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode("utf-8")])
        metadata = create_summary_metadata(display_name="", description="")
        self._event(step, Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]))

    def _event(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))
        self._writer.flush()


TRACKERS.add("tensorboard", TensorboardTracker)
