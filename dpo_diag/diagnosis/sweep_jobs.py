"""The jobs of a sweep: which there are, what became of each, why, and where to look."""

from __future__ import annotations

import glob as globbing
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpo_diag.errors import DiagError
from dpo_diag.records import Run, load_run
from dpo_diag.records.checksums import damaged, read_yaml
from dpo_diag.records.files import RUN_FILE, part_of
from dpo_diag.records.jobs import JobState, Plan, job_state, plan_of
from dpo_diag.records.run_lock import held_by
from dpo_diag.records.secrets import without_secrets

Status = Literal["completed", "failed", "interrupted", "running", "missing"]
STALE_SECONDS = 3600.0
"""A run elsewhere, of which nobody can see whether its process is there, that wrote nothing for so long was killed."""
_LAST_BYTES = 4096
_NUMBER = re.compile(r"(\d+)", re.ASCII)


@dataclass(frozen=True)
class Job:
    """One job of a sweep, or a run beside others.

    Attributes:
        folder: its run folder; of a missing one where it would be.
        status: completed: its records are whole, or lie where its `out` says. interrupted: stopped, or killed without
            a word. missing: never begun.
        num: its number in the multirun; None for a run of none.
        reason: why it is not completed, in a line; "" for a completed one.
        log: the file to look at; None where there is none.
        overrides: name -> value as written on the command line.
        step, max_steps: how far it came, and of how many; None where that is not known.
        loadable: whether it holds records that can be read.
        waits: whether its turn is still to come.
    """

    folder: Path
    status: Status
    num: int | None = None
    reason: str = ""
    log: Path | None = None
    overrides: dict[str, str] = field(default_factory=dict)
    step: int | None = None
    max_steps: int | None = None
    loadable: bool = False
    waits: bool = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def progress(self) -> str:
        """ "step 40 of 80", "step 40", or "" before the first record."""
        if self.step is None:
            return ""
        return f"step {self.step}" + (f" of {self.max_steps}" if self.max_steps and self.max_steps > 0 else "")

    def document(self) -> dict[str, Any]:
        return {
            "run": str(self.folder), "job": self.num, "overrides": dict(self.overrides), "status": self.status,
            "reason": self.reason or None, "log": None if self.log is None else str(self.log), "step": self.step,
        }  # fmt: skip


def some_jobs_of(patterns: Sequence[str | os.PathLike[str]]) -> tuple[list[Job], list[str]]:
    """As `jobs_of`.

    Raises:
        DiagError: no job is named.
    """
    jobs, strangers = jobs_of(patterns)
    if not jobs:
        raise DiagError(
            "no run found",
            where=", ".join(map(str, patterns)),
            got=f"no run in {', '.join(strangers[:3])}" if strangers else None,
            hint="name run folders, a multirun's folder or a glob, e.g. 'runs/sql_dpo/*/*'",
        )
    return jobs, strangers


def jobs_of(patterns: Iterable[str | os.PathLike[str]]) -> tuple[list[Job], list[str]]:
    """The jobs that globs and folders name, each once however it was named; of a multirun's folder every job that it
    was meant to run. Beside them what was named and is, holds and lies in no run.

    A folder that Hydra made counts as a job, whatever it holds.
    """
    named = sorted({Path(p) for text in patterns for p in globbing.glob(str(text), recursive=True)})
    found: dict[Path, Job] = {}
    others = []
    for path in named:
        if is_run(path):
            found.setdefault(path.resolve(), job_at(path))
            continue
        inside = sorted(p for p in path.glob("*") if is_run(p)) if path.is_dir() else []
        plan = plan_of(path) if path.is_dir() else None
        jobs = [job_at(p) for p in inside]
        for job in [*jobs, *(_missing(path, plan, jobs) if plan is not None else ())]:
            found.setdefault(job.folder.resolve(), job)
        if not inside and plan is None and not path.is_file():
            others.append(path)
    absolute = [path.resolve() for path in others]
    strangers = [
        str(path)
        for path, whole in zip(others, absolute, strict=True)
        if not any(run.is_relative_to(whole) or whole.is_relative_to(run) for run in found)
    ]
    return sorted(found.values(), key=_order), strangers


def _order(job: Job) -> list[str | int]:
    """By folder, numbers as numbers: 10 comes after 2."""
    return [int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(str(job.folder)))]


def is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file() or (folder / ".hydra").is_dir()


def overrides(folder: Path) -> dict[str, str]:
    """The command line's overrides as Hydra kept them: name -> value as written; {} where there are none."""
    return _named(kept_overrides(folder))


def kept_overrides(folder: Path) -> list[str]:
    """The command line's overrides as Hydra kept them, in their order; [] where there are none.

    Raises:
        DiagError: the file cannot be read, or holds no list.
    """
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        return []
    lines = read_yaml(file) or []
    if not isinstance(lines, list):
        raise damaged(file, f"a {type(lines).__name__}, no list", "restore or remove it")
    return list(map(str, lines))


def _named(lines: Iterable[str]) -> dict[str, str]:
    # That a run was resumed says nothing of what it is.
    lines = (line for line in lines if not line.startswith(("resume=", "checkpoint=", "fresh_optimizer=")))
    pairs = (line.lstrip("+~").partition("=") for line in lines)
    return {k: str(v) for k, v in without_secrets({name: value for name, _, value in pairs}).items()}


def _missing(folder: Path, plan: Plan, found: list[Job]) -> list[Job]:
    """Planned jobs of which there is no folder."""
    began = {job.num for job in found}
    waits = plan.state.status == "running" and plan.state.alive() is not False
    why = "not begun yet" if waits else "never begun: the sweep ended before it"
    return [
        Job(folder / str(num), "missing", num, why, _log(folder / str(num)), _named(given), waits=waits)
        for num, given in enumerate(plan.jobs or ())
        if num not in began
    ]


def job_at(folder: Path) -> Job:
    """What became of the job of a folder."""
    try:
        given, state, run, error = overrides(folder), job_state(folder), None, None
        if (folder / RUN_FILE).is_file():
            run = load_run(folder)
            error = run.info.error
    except DiagError as wrong:
        return Job(folder, "failed", _number(folder, None), str(wrong), folder / RUN_FILE)
    status, reason = _status(folder, state, run, "out" in given)
    reason = reason or (f"{error}" if error else "")
    if status == "completed":
        reason = ""
    step, max_steps = (None, None) if run is None else (_last_step(run), run.info.training.max_steps)
    log = None if status == "completed" else _log(folder)
    return Job(folder, status, _number(folder, state), reason, log, given, step, max_steps, run is not None)


def _number(folder: Path, state: JobState | None) -> int | None:
    """Its number: what it says; in a multirun's folder its name."""
    if state is not None and state.num is not None:
        return state.num
    return int(folder.name) if folder.name.isdigit() and folder.name.isascii() else None


def _status(folder: Path, state: JobState | None, run: Run | None, is_elsewhere: bool) -> tuple[Status, str]:
    """`is_elsewhere`: the job was told to write its records into another folder."""
    recorded = None if run is None else run.info.status
    if state is not None and state.status == "failed":
        return "failed", state.error or ""
    if state is not None and state.status == "running":
        alive = state.alive()
        if alive or (alive is None and _idle(folder) < STALE_SECONDS):
            return "running", "" if alive else f"on {state.host}, last written {_idle(folder):.0f} s ago"
    if recorded == "finished" or (run is None and is_elsewhere and state is not None and state.status == "completed"):
        return "completed", ""
    if recorded == "failed":
        return "failed", ""
    if run is None:
        stopped = state is not None and state.status in ("running", "interrupted")
        why = f"no run.json: it ended before the first record{_last_line(folder)}"
        return "interrupted" if stopped else "failed", why
    owner = held_by(folder) if recorded == "running" and state is None else None  # of a script, which says no more
    if owner is not None and owner.alive():
        return "running", ""
    unseen = recorded == "running" and state is None and (owner is None or owner.alive() is None)
    if unseen and _idle(folder) < STALE_SECONDS:
        return "running", f"last written {_idle(folder):.0f} s ago"
    reached = "" if (at := _last_step(run)) is None else f" at step {at}"
    killed = state is None or state.status == "running"
    return "interrupted", f"{'killed' if killed and recorded != 'interrupted' else 'stopped'}{reached}"


def _idle(folder: Path) -> float:
    """Seconds since anything below a run's folder was written."""
    places = [folder, *(p for p in folder.iterdir()), *folder.glob("*/*")]
    newest = max((p.stat().st_mtime for p in places if p.exists()), default=0.0)
    return max(0.0, time.time() - newest)  # a clock that was set back


def _last_step(run: Run) -> int | None:
    """The last step of which anything is recorded, from the names of the files."""
    parts = [part for name in ("history", "pairs") for file in run.files(name) if (part := part_of(file)) is not None]
    return max((part.last for part in parts), default=None)


def _log(folder: Path) -> Path | None:
    """The newest log with anything in it: the job's own, or the launcher's."""
    own = [p for p in folder.glob("*.log") if p.stat().st_size]
    of_launchers = [*(folder.parent / ".submitit").glob(f"*_{folder.name}/*_log.err"),
                    *folder.parent.glob(f"slurm-{folder.name}.out")]  # fmt: skip
    launcher = [p for p in of_launchers if p.stat().st_size]
    return max([*own, *([] if own else launcher)], key=lambda p: p.stat().st_mtime, default=None)


def _last_line(folder: Path) -> str:
    """What a job's log says last, where nothing else says why it ended; "" without a log."""
    file = _log(folder)
    if file is None:
        return ""
    with file.open("rb") as lines:
        lines.seek(max(0, file.stat().st_size - _LAST_BYTES))
        last = [line.strip() for line in lines.read().decode(errors="replace").splitlines() if line.strip()]
    return f"; its log ends: {last[-1][:200]}" if last else ""
