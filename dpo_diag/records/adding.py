"""A run folder that something is added to: what it holds stays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.reader import Run
from dpo_diag.records.run_info import CallInfo, RunInfo, Status, ended_by
from dpo_diag.records.run_lock import writing
from dpo_diag.records.writer import RunWriter

KEEP_ALL = 2**62
"""As the step to resume from: no row of the folder is of a later step, so none is removed."""


@contextmanager
def added_to(out: str | os.PathLike[str], call: CallInfo | None = None) -> Iterator[tuple[RunWriter, RunInfo]]:
    """A writer that adds to `out` (made if absent), which nobody else writes meanwhile, and the run's facts before it.

    At the end a run of measurements is marked finished, or with what ended them. A training's own status, end and
    package versions stay true at every moment, and so do those of a run that was finished before.

    Args:
        call: the command that adds, kept in a run of measurements that is not finished; None for a script.
    """
    path = Path(out)
    with writing(path):
        before = Run(path).info if (path / RUN_FILE).is_file() else RunInfo(kind="scored")
        ends_with_it = before.kind == "scored" and before.status != "finished"
        writer = RunWriter(path, kind=before.kind, resume_step=KEEP_ALL, adds=not ends_with_it)
        status: Status = "finished"
        error: str | None = None
        if ends_with_it:
            writer.update(call=call)
        try:
            yield writer, before
        except BaseException as raised:
            status, error = ended_by(raised)
            raise
        finally:
            if ends_with_it or (before.kind == "scored" and status == "finished"):
                writer.finish(status, error)
            else:
                writer.merge()
                writer.release()
