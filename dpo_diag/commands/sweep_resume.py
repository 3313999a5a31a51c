"""`dpo-diag sweep DIR --resume`: what failed, was stopped or never began is run again, one job after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_diag.command_lines import line, override, say_next
from dpo_diag.commands import slurm
from dpo_diag.commands.resume_trust import ONCE, SCRIPT, is_own, is_own_sweep, links_out, not_taken
from dpo_diag.diagnosis.sweep_jobs import kept_overrides
from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.next_steps import after_submit
from dpo_diag.records.files import has_checkpoint
from dpo_diag.records.jobs import Plan, end_plan, plan_of, this_process, write_plan
from dpo_diag.records.secrets import REDACTED, redacted_words
from dpo_diag.text import plural, safe

if TYPE_CHECKING:
    from dpo_diag.diagnosis.sweep_jobs import Job

EARLIER = "earlier"
"""Folder in a sweep that keeps what failed jobs left, their logs among it, when they are run again from the start."""
_SHOWN = 8
"""Of what somebody else's sweep asks for, so much stands in the line."""
APPS = ("dpo-train", "dpo-score", "dpo-generate")


def resume_jobs(folder: Path, only: Sequence[int] | None = None, *, trust: bool = False) -> int:
    """Run again what did not complete: from its last checkpoint where there is one, else from the start. A sweep that
    was sent to Slurm is sent again, those jobs of it; any other one's run here, one after the other.

    Args:
        only: numbers of the jobs; None for all.
        trust: whether all is taken from a sweep that this user did not plan.

    Returns: 0 where they were sent, or every job of the sweep completed, or every one of `only`; else 1.

    Raises:
        DiagError: the sweep still runs, no such job, a secret that no record holds is needed, or somebody else's sweep
            asks for what runs code or leads elsewhere.
    """
    from dpo_diag.commands.sweep_end import ending
    from dpo_diag.diagnosis.sweep_jobs import jobs_of

    require("hydra", "running jobs again")
    plan = plan_of(folder)
    assert plan is not None
    jobs = jobs_of([folder])[0]
    running = [job for job in jobs if job.status == "running" and (only is None or job.num in only)]
    if running or (only is None and plan.state.alive() and plan.state.status == "running"):
        raise DiagError(
            "the sweep still runs", where=folder, got=f"{plural(len(running), 'running job')}",
            hint=f"dpo-diag sweep {folder} --watch",
        )  # fmt: skip
    if plan.jobs is None:
        return _go_on(folder, plan if trust else _trusted(folder, plan, [], False), jobs)
    unknown = [n for n in only or () if n not in [job.num for job in jobs]]
    if unknown:
        raise DiagError("no such job", where=folder, got=unknown, expected=f"0 to {len(plan.jobs) - 1}", usage=True)
    again = [job for job in jobs if job.status != "completed" and (only is None or job.num in only)]
    is_sent = plan.state.host == slurm.HOST and (folder / SCRIPT).is_file() and slurm.can_send()
    asked = plan if trust else _trusted(folder, plan, again, is_sent and only is None)
    if again and only is None:
        if is_sent:
            return _send_again(folder, plan, again)
        if (used := _launcher(plan)) is not None:
            print(f"the sweep ran with {used}; these jobs run here, one after the other", file=sys.stderr)
    if not again:
        print(f"nothing to run again: {plural(len(jobs), 'job')} completed", file=sys.stderr)
    if only is None:  # whoever follows the sweep sees that the rest will come
        write_plan(folder, replace(plan, state=this_process()))
    try:
        for job in again:
            _run_again(folder, asked, job)
    finally:
        if only is None:
            end_plan(folder, "completed")
    if only is None:
        ending(folder)
    now = [job for job in jobs_of([folder])[0] if only is None or job.num in only]
    return 0 if all(job.status == "completed" for job in now) else 1


def _trusted(folder: Path, plan: Plan, again: Sequence[Job], is_sent: bool) -> Plan:
    """What is run of a plan that nobody vouched for: all of this user's own, of another's what leads nowhere else.

    Raises:
        DiagError: it asks for more than that.
    """
    is_own = is_own_sweep(folder)
    asked = {a: None for job in again for a in _foreign(folder, plan, job, is_own)}
    if not is_own:
        drawn = [a for a in plan.arguments if a not in ("-m", "--multirun")] if plan.jobs is None else []
        asked |= dict.fromkeys([*not_taken([*plan.hydra, *drawn]), *links_out(folder), *([SCRIPT] if is_sent else [])])
    if asked:
        words = redacted_words(list(asked))
        more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
        raise DiagError(
            "this sweep is not signed as yours, and asks for what may run code, or read and write elsewhere",
            where=folder, got=" ".join(words[:_SHOWN]) + more,
            hint=f"if you trust it: {line('dpo-diag', 'sweep', folder, '--resume', '--trust')}", usage=True,
        )  # fmt: skip
    if is_own:
        return plan
    if Path(plan.cwd) != Path.cwd():
        print(f"note: {folder} is not signed as yours: its jobs run here, not in {safe(plan.cwd)}", file=sys.stderr)
    return replace(plan, cwd=os.curdir, app=plan.app if plan.app in APPS else APPS[0])


def _foreign(folder: Path, plan: Plan, job: Job, is_own_plan: bool) -> list[str]:
    """A job's overrides that are not taken from somebody else, and are neither its own signed ones nor planned."""
    place = folder / str(job.num) if job.status == "missing" else job.folder
    if is_own(place):
        return []
    planned = (_planned(plan, job) or ()) if is_own_plan else ()
    return [text for text in not_taken(_kept(plan, job, place)) if text not in planned]


def _send_again(folder: Path, plan: Plan, again: Sequence[Job]) -> int:
    """The tasks of these jobs to Slurm once more, where each goes on as `--resume --job` does."""
    left = slurm.queue(plan.state.pid)
    if left:
        raise DiagError(
            "the sweep is still in Slurm's queue", where=folder, hint=f"dpo-diag sweep {folder} --watch",
            got=", ".join(f"{n} {state}" for state, n in left.items()),
        )  # fmt: skip
    number = slurm.send(folder / SCRIPT, [job.num for job in again if job.num is not None])
    write_plan(folder, replace(plan, state=replace(plan.state, status="running", ended=None, pid=number)))
    print(f"{plural(len(again), 'job')} again: Slurm job {number}", file=sys.stderr)
    say_next(after_submit(folder), sys.stderr)
    return 0


def _launcher(plan: Plan) -> str | None:
    """What ran the sweep's jobs elsewhere or side by side, as its command line says it; None for this one by one."""
    if plan.state.host == slurm.HOST:
        return "Slurm (sbatch is not on this machine)"
    named = [a.lstrip("+") for a in plan.arguments if a.lstrip("+").startswith("hydra/launcher=")]
    return next((text for text in named if not text.endswith("=basic")), None)


def _run_again(folder: Path, plan: Plan, job: Job) -> None:
    """One job in a process of its own; how it ends, it says in its folder."""
    place = (folder / str(job.num) if job.status == "missing" else job.folder).resolve()
    if plan.app == "dpo-train" and has_checkpoint(place):
        # What resume= would not take from a run that is not signed; a secret it tells itself.
        more = [] if is_own(place) else [a for a in not_taken(kept_overrides(place)) if REDACTED not in a]
        arguments = [*more, override("resume", place)]
        how = "from its last checkpoint"
    else:
        overrides = _complete(_kept(plan, job, place))
        _put_aside(folder, place)
        arguments = [*overrides, override("hydra.run.dir", place)]
        how = "from the start"
    print(f"job {job.num}, {job.status}: again {how}", file=sys.stderr, flush=True)
    _call(plan, [*arguments, *plan.hydra])


def _kept(plan: Plan, job: Job, place: Path) -> Sequence[str]:
    """A job's own: as Hydra kept them; of one that never began as they were planned, where no secret is left out."""
    if (place / ".hydra" / "overrides.yaml").is_file():
        kept: Sequence[str] | None = kept_overrides(place)
    else:
        kept = _planned(plan, job)
    if kept is None:
        raise DiagError("this job was not planned", where=place, got=job.num, hint=f"move it out of {place.parent}")
    return [text for text in kept if not ONCE.match(text)]


def _planned(plan: Plan, job: Job) -> Sequence[str] | None:
    return dict(enumerate(plan.jobs or ())).get(-1 if job.num is None else job.num)


def _complete(arguments: Sequence[str]) -> Sequence[str]:
    lacking = [text.partition("=")[0] for text in arguments if REDACTED in text]
    if lacking:
        raise DiagError("a secret is not kept, so this cannot be run again as it was", got=", ".join(lacking),
                        hint="give it by its environment variable, and start the sweep anew")  # fmt: skip
    return arguments


def _put_aside(folder: Path, place: Path) -> None:
    """Move what a job left behind, so that its records begin anew and its log stays readable."""
    if not place.exists():
        return
    number = 1
    while (aside := folder / EARLIER / f"{place.name}-{number}").exists():
        number += 1
    aside.parent.mkdir(exist_ok=True)
    place.rename(aside)


def _call(plan: Plan, arguments: Sequence[str]) -> int:
    if plan.app in APPS:  # which, too, import nothing from the folder that they are called in
        how = ["-P", "-m", f"dpo_diag.commands.{plan.app.removeprefix('dpo-')}"]
    else:
        how = ["-m", "dpo_diag.commands.train"]  # started as `python -m`, or by a script of the user's own
    command = [sys.executable, *how, *arguments]
    return subprocess.run(
        command, cwd=plan.cwd if Path(plan.cwd).is_dir() else None, stdout=sys.stderr.fileno()
    ).returncode


def _go_on(folder: Path, plan: Plan, jobs: Sequence[Job]) -> int:
    """A sweeper that draws its jobs (Optuna) goes on from its storage until as many completed as were asked for."""
    done = sum(job.status == "completed" for job in jobs)
    left = (plan.n_trials or 0) - done
    if left <= 0:
        print(f"nothing to run again: {plural(done, 'job')} completed", file=sys.stderr)
        return 0
    round_ = 1 + len({job.name.partition("-")[0] for job in jobs if job.name.startswith("again")})
    ours = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.sweeper.n_trials")
    kept = [a for a in _complete(plan.arguments) if not a.lstrip("+").startswith(ours)]
    place = [override("hydra.sweep.dir", folder.resolve()), f"hydra.sweep.subdir=again{round_}-${{hydra.job.num}}"]
    _call(plan, [*kept, *place, f"hydra.sweeper.n_trials={left}"])
    from dpo_diag.diagnosis.sweep_jobs import jobs_of

    # A trial that failed stays one: others took its place.
    return 0 if sum(job.status == "completed" for job in jobs_of([folder])[0]) >= (plan.n_trials or 0) else 1
