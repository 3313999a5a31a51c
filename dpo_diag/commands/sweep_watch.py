"""`dpo-diag sweep DIR --watch`: what its jobs do, a line for each change, until none is left that runs or will."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dpo_diag.commands import slurm
from dpo_diag.errors import DiagError
from dpo_diag.records.jobs import plan_of

PATIENCE = 3600.0
"""Seconds without a change after which jobs that wait are followed no longer, where no scheduler says that they will
run."""


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def follow(runs: Sequence[str], interval: float) -> None:
    """Print each job's status, and again whenever it changes; returns when nothing runs or waits any more, or what
    waits never comes: Slurm's queue says so, or for an hour nothing began.

    On standard error, so that what is printed at the end stands alone.
    """
    from dpo_diag.commands.sweep_text import status_line
    from dpo_diag.diagnosis.sweep_jobs import jobs_of

    if interval <= 0:
        raise DiagError("out of range", where="--interval", got=interval, expected="seconds above 0", usage=True)
    told: dict[Path, str] = {}
    changed = time.monotonic()
    while True:
        jobs, _ = jobs_of(runs)
        if not jobs:
            raise DiagError("no run found", where=", ".join(runs), hint="name a multirun's folder or run folders")
        for job in jobs:
            line = status_line(job)
            if told.get(job.folder) != line:
                told[job.folder] = line
                changed = time.monotonic()
                say(line)
        if any(job.status == "running" for job in jobs):
            changed = time.monotonic()
        elif not any(job.waits for job in jobs):
            return
        elif (why := _no_longer(runs, time.monotonic() - changed)) is not None:
            say(why)
            return
        time.sleep(interval)


def _no_longer(runs: Sequence[str], idle: float) -> str | None:
    """Why jobs that have not begun are waited for no longer; None while they may."""
    plans = [plan for run in runs if (plan := plan_of(Path(run))) is not None]
    numbers = [plan.state.pid for plan in plans if plan.state.host == slurm.HOST]
    queues = [slurm.queue(number) for number in numbers]
    if queues and None not in queues:
        over = not any(queues)
        return f"Slurm has no task of {', '.join(map(str, numbers))} any more: the rest never began" if over else None
    if idle < PATIENCE:
        return None
    return f"no job began in {PATIENCE / 60:.0f} minutes, and nothing here tells whether one will: not followed on"
