"""`dpo-diag sweep`: several runs side by side; every job with its status; failed and missing ones run again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_sweep
from dpo_diag.records.files import write_csv
from dpo_diag.text import records, terminal_width, to_json

if TYPE_CHECKING:
    import pandas as pd

    from dpo_diag.diagnosis.sweep import Sweep
    from dpo_diag.diagnosis.sweep_against import Setting


def sweep(
    runs: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    json: bool = False,
    csv: Path | None = None,
    html: Path | None = None,
    no_verdicts: bool = False,
    against: str | None = None,
    resume: bool = False,
    job: list[int] | None = None,
    trust: bool = False,
    watch: bool = False,
    interval: float = 5.0,
) -> int:
    """Several runs side by side: before, after, best, verdict and rank; every job with its status.

    Args:
        runs: run folders, a multirun's folder, or a glob, e.g. 'runs/sql_dpo/*/*'.
        json: one JSON document on standard output, nothing else there.
        csv: write the table of runs as CSV, too.
        html: write one page about the sweep, too: table, parallel coordinates, Pareto front, knobs, curves.
        no_verdicts: do not explain runs whose explanation is missing or outdated.
        against: hold every setting against this one, e.g. loss=sigmoid, or against its own `start`: paired over the
            questions, with the metrics.
        resume: run again what failed, was stopped or never began: from its last checkpoint, where there is one.
        job: with --resume only the job of that number; may be given several times.
        trust: with --resume take all that a sweep asks for which another user planned, code and places too.
        watch: follow a running sweep: one line for each change, the table at its end.
        interval: seconds between two looks of --watch.
    """
    if resume:
        from dpo_diag.commands.sweep_resume import resume_jobs

        return resume_jobs(_one_folder(runs, "--resume"), job, trust=trust)
    if job or trust:
        raise DiagError(f"{'--job' if job else '--trust'} belongs to --resume", usage=True)
    if watch:
        from dpo_diag.commands.sweep_watch import follow

        follow(runs, interval)
    from dpo_diag.diagnosis.sweep_jobs import some_jobs_of

    some_jobs_of(runs)  # a mistyped path is answered before anything heavy is imported
    from dpo_diag.diagnosis.sweep import sweep as collect

    collected = collect(runs)
    from dpo_diag.commands.sweep_end import verdicts

    found = {} if no_verdicts else verdicts(collected)
    held = None if against is None else _held(collected, against)
    if html:
        from dpo_diag.report.sweep_page import write_sweep

        write_sweep(collected, html, _name(runs), found, document(collected, found))
    if csv:
        write_csv(csv, _with_verdicts(collected.runs, found))
    multirun = _multirun(runs)
    again = multirun if any(j.status in ("failed", "interrupted", "missing") for j in collected.jobs) else None
    ranked = [str(run) for run in collected.ranked["run"]] if len(collected.runs) else []
    # Runs that nothing ranks were not measured on the same thing: how two of them differ is no next question.
    following = after_sweep(ranked if collected.ranking.by else ranked[:1], again)
    if json:
        told = {} if held is None else {"against": held_document(*held)}
        print(to_json({**document(collected, found), **told, "next": following}, indent=2))
    else:
        from dpo_diag.commands.sweep_text import lines

        print("\n".join(lines(collected, terminal_width(unknown=80), found)))
        if held is not None:
            from dpo_diag.commands.against_text import lines as against_lines

            print("\n".join(["", *against_lines(str(against), *held, terminal_width(unknown=80))]))
        for written in (csv, html):
            if written:
                print(written)
        say_next(following)
    is_told = len(collected.runs) or not collected.unfinished
    return 0 if is_told and not (watch and collected.unfinished) else 1


def _held(collected: Sweep, base: str) -> tuple[list[Setting], list[Setting]]:
    from dpo_diag.diagnosis.sweep_against import against

    return against(collected, base)


def held_document(bases: list[Setting], others: list[Setting]) -> dict[str, Any]:
    """{"base": [...], "others": [...]} of `Setting.document`."""
    return {"base": [s.document() for s in bases], "others": [s.document() for s in others]}


def document(collected: Sweep, found: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """{"runs": [every job: run, job, overrides, status, reason, log, verdict, and of a completed one its row],
    "groups": [...], "constant", "before", "ranked_by", "apart", "failed", "not_runs"}; NaN is null, an override that is
    a number is one, and one that a run does not have is null."""
    from dpo_diag.diagnosis.sweep_effects import effects, pareto

    rows = {row["run"]: _typed(row) for row in records(collected.runs)} if len(collected.runs) else {}
    told = []
    for job in collected.jobs:
        about = job.document()
        about["overrides"] = {name: _typed_value(value) for name, value in about["overrides"].items()}
        told.append({**rows.get(about["run"], {}), **about, "verdict": (found or {}).get(about["run"])})
    return {
        "runs": told,
        "groups": [_typed(row) for row in records(collected.groups)],
        "knobs": [e.document() for e in effects(collected)] if len(collected.runs) else [],
        "pareto": pareto(collected) if len(collected.runs) else [],
        "constant": {name: _typed_value(value) for name, value in collected.constant.items()},
        "before": collected.before or None, "ranked_by": list(collected.ranking.by),
        "not_ranked": collected.ranking.why_not or None,
        "apart": collected.apart,
        "failed": [{"run": str(j.folder), "status": j.status, "why": j.reason} for j in collected.unfinished],
        "not_runs": collected.not_runs,
    }  # fmt: skip


def _name(runs: list[str]) -> str:
    """What the page is called: the folder that was named and the one above it, which has the multirun's name."""
    if len(runs) > 1 or any(c in runs[0] for c in "*?["):
        return ", ".join(runs)
    folder = Path(runs[0]).absolute()
    return f"{folder.parent.name}/{folder.name}"


def _one_folder(runs: list[str], option: str) -> Path:
    folder = _multirun(runs)
    if folder is None:
        raise DiagError(
            f"{option} needs one multirun's folder", got=", ".join(runs),
            expected="the folder that holds sweep.json, as dpo-train -m made it", usage=True,
        )  # fmt: skip
    return folder


def _multirun(runs: list[str]) -> Path | None:
    """The multirun's folder, where one is named and nothing else."""
    from dpo_diag.records.jobs import SWEEP_FILE

    return Path(runs[0]) if len(runs) == 1 and (Path(runs[0]) / SWEEP_FILE).is_file() else None


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value or None if name in ("run", "data") else _typed_value(value) for name, value in row.items()}


def _typed_value(value: Any) -> Any:
    """A value as it was written on the command line -> number, true, false, null or text."""
    if not isinstance(value, str):
        return value
    if value in _WORDS:
        return _WORDS[value]
    for kind in (int, float):
        try:
            number_ = kind(value)
        except ValueError:
            continue
        return number_ if math.isfinite(number_) else value
    return value


_VERDICT = {"verdict": "label", "harm": "harm"}
_WORDS = {"": None, "null": None, "true": True, "false": False}


def _with_verdicts(frame: pd.DataFrame, found: dict[str, dict[str, Any]]) -> pd.DataFrame:
    if not found:
        return frame
    own = [found.get(str(run), {}) for run in frame["run"]]
    return frame.assign(**{name: [str(v.get(key, "")) for v in own] for name, key in _VERDICT.items()})
