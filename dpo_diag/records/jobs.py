"""How the jobs of a multirun went: what each says of itself while it runs, and what the multirun was meant to run.

`.hydra/job.json` in a job's folder, from before its first line to its end: a process that was killed leaves "running"
behind with the process's number, which is then nobody's. `sweep.json` in the multirun's folder names every job that it
will run, so that one that never began is missed.
"""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from dpo_diag.documents import parse_yaml
from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import agrees, read_json, yaml_bytes
from dpo_diag.records.files import write_bytes, write_json
from dpo_diag.records.process import exists, process_began
from dpo_diag.records.secrets import redacted, without_secrets
from dpo_diag.records.typed_json import Tolerance, from_document

T = TypeVar("T")

JOB_FILE = Path(".hydra") / "job.json"
SWEEP_FILE = "sweep.json"
Ended = Literal["running", "completed", "failed", "interrupted"]


@dataclass(frozen=True)
class JobState:
    """What a job says of itself.

    Attributes:
        status: running from its beginning on, until its own end.
        num: its number in the multirun; None for a single run.
        error: of a failed one, in a line.
        host, pid, process_began: the process that ran it; the last one tells it from a later process of that number
            (Linux: clock ticks since boot), None where the system does not say.
        began, ended: ISO 8601, UTC.
    """

    status: Ended
    num: int | None = None
    error: str | None = None
    host: str = ""
    pid: int = 0
    process_began: int | None = None
    began: str = ""
    ended: str | None = None

    def alive(self) -> bool | None:
        """Whether the process that says it runs is there; None on another machine, where that cannot be seen."""
        if self.host != socket.gethostname():
            return None
        return process_began(self.pid) == self.process_began if self.process_began is not None else exists(self.pid)


@dataclass(frozen=True)
class Plan:
    """What a multirun was asked to do.

    Attributes:
        app: dpo-train, dpo-score or dpo-generate.
        arguments: its command line; secrets are left out.
        cwd: where it was called: relative paths of the overrides begin there.
        jobs: each job's overrides; None where a sweeper draws them as it goes (Optuna).
        hydra: overrides of Hydra's own that a single job needs too.
        n_trials: of a sweeper that draws: how many jobs it will run; None where that is not known.
        state: the process that runs it.
    """

    app: str
    arguments: tuple[str, ...]
    cwd: str
    jobs: tuple[tuple[str, ...], ...] | None = None
    hydra: tuple[str, ...] = ()
    n_trials: int | None = None
    state: JobState = JobState("interrupted")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_process(num: int | None = None) -> JobState:
    """A job that begins here and now."""
    return JobState("running", num, None, socket.gethostname(), os.getpid(), process_began(os.getpid()), now())


# --- a job ------------------------------------------------------------------------------------------------------------


def begin_job(folder: Path, num: int | None) -> None:
    """Say that a job runs; one that is run again keeps its number."""
    before = job_state(folder)
    known = num if num is not None or before is None else before.num
    write_json(folder / JOB_FILE, asdict(this_process(known)))


def end_job(folder: Path, status: Ended, error: str | None = None) -> None:
    """Say how it ended; nothing where the folder is gone."""
    state = job_state(folder)
    if state is not None:
        write_json(
            folder / JOB_FILE, asdict(replace(state, status=status, error=error and redacted(error), ended=now()))
        )


def guard_configuration(folder: Path) -> None:
    """What Hydra wrote of a job and of its multirun: without secrets, and with a checksum.

    Raises:
        DiagError: it is more than the readers of configurations take.
    """
    for path in (*sorted((folder / JOB_FILE.parent).glob("*.yaml")), folder.parent / "multirun.yaml"):
        # The multirun's is one file for all its jobs, which may begin side by side: the first one does it.
        if path.is_file() and not agrees(data := path.read_bytes(), ".yaml"):
            text = data.decode()
            try:
                document = parse_yaml(data)
            except ValueError as error:
                write_bytes(path, redacted(text).encode())
                raise DiagError(
                    "the configuration cannot be kept", where=path, got=error,
                    hint="long lists belong in a file of their own: data.path=FILE, prompts.path=FILE", usage=True,
                ) from error  # fmt: skip
            clean = without_secrets(document)
            if clean != document:
                import yaml

                text = yaml.safe_dump(clean, sort_keys=False, allow_unicode=True)
            write_bytes(path, yaml_bytes(text))


def job_state(folder: Path) -> JobState | None:
    """What a job's folder says; None where it says nothing.

    Raises:
        DiagError: the file is of another form.
    """
    return _read(JobState, folder / JOB_FILE)


# --- a multirun -------------------------------------------------------------------------------------------------------


def write_plan(folder: Path, plan: Plan) -> None:
    write_json(folder / SWEEP_FILE, asdict(plan))


def end_plan(folder: Path, status: Ended) -> None:
    """Say that a multirun ended; nothing where there is no plan."""
    plan = plan_of(folder)
    if plan is not None:
        write_plan(folder, replace(plan, state=replace(plan.state, status=status, ended=now())))


def plan_of(folder: Path) -> Plan | None:
    """What a multirun's folder says it was asked to do; None for any other folder.

    Raises:
        DiagError: the file is of another form.
    """
    return _read(Plan, folder / SWEEP_FILE)


def _read(kind: type[T], file: Path) -> T | None:
    try:
        document = read_json(file, "remove it")
    except FileNotFoundError:
        return None
    return from_document(kind, document, file, Tolerance.UNKNOWN_FIELDS)
