"""A run folder that something is added to: what it holds stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.reader import Run
from dpo_diag.records.run_info import RunInfo, Status, ended_by
from dpo_diag.records.writer import RunWriter

KEEP_ALL = 2**62
"""As the step to resume from: no row of the folder is of a later step, so none is removed."""


@contextmanager
def added_to(out: str | os.PathLike[str]) -> Iterator[tuple[RunWriter, RunInfo]]:
    """A writer that adds to `out` (made if absent), and the run's facts before it.

    At the end the run is marked finished, or with what ended it; a training's own kind, status and end stay true, and
    so do those of a run that was finished before something failed to be added.
    """
    path = Path(out)
    before = Run(path).info if (path / RUN_FILE).is_file() else RunInfo(kind="scored")
    writer = RunWriter(path, kind=before.kind, resume_step=KEEP_ALL)
    status: Status = "finished"
    error: str | None = None
    try:
        yield writer, before
    except BaseException as raised:
        status, error = ended_by(raised)
        raise
    finally:
        if before.kind == "scored" and (status == "finished" or before.status != "finished"):
            writer.finish(status, error)
        else:
            writer.merge()
            writer.update(status=before.status or "finished", ended=before.ended)
