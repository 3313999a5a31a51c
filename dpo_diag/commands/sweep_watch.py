"""`dpo-diag sweep DIR --watch`: what its jobs do, a line for each change, until none is left that runs or will."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dpo_diag.errors import DiagError


def follow(runs: Sequence[str], interval: float) -> None:
    """Print each job's status, and again whenever it changes; returns when nothing runs or waits any more.

    On standard error, so that what is printed at the end stands alone.
    """
    from dpo_diag.commands.sweep_text import status_line
    from dpo_diag.diagnosis.sweep_jobs import jobs_of

    if interval <= 0:
        raise DiagError("out of range", where="--interval", got=interval, expected="seconds above 0", usage=True)
    told: dict[Path, str] = {}
    while True:
        jobs, _ = jobs_of(runs)
        if not jobs:
            raise DiagError("no run found", where=", ".join(runs), hint="name a multirun's folder or run folders")
        for job in jobs:
            line = status_line(job)
            if told.get(job.folder) != line:
                told[job.folder] = line
                print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)
        if not any(job.status == "running" or job.waits for job in jobs):
            return
        time.sleep(interval)
