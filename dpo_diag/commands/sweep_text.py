"""A sweep for a terminal: one table in blocks that fit its width, the jobs that did not complete, what numbers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dpo_diag.diagnosis.sweep_effects import RISE, effects, pareto
from dpo_diag.diagnosis.sweep_words import (
    SHORT,
    about_ranks,
    legend,
    outcome_words,
    short_names,
    shown_runs,
    verdict_words,
)
from dpo_diag.styled import wrap
from dpo_diag.text import MISSING, bracket, cut, number, plural, records, safe, signed, some, table

if TYPE_CHECKING:
    import pandas as pd

    from dpo_diag.diagnosis.sweep import Sweep
    from dpo_diag.diagnosis.sweep_jobs import Job

BEFORE = "before"
_REASON = 200
"""Characters of why a job did not complete: the log holds all of it."""
_SHOWN = 8
"""Effects of knobs, and runs on the front, that are named."""
_WIDEST = 24
"""Cells that one setting or name may take before it is cut."""
Verdicts = Mapping[str, Mapping[str, Any]]
"""Run folder -> the explanation's verdict."""


def lines(collected: Sweep, width: int, verdicts: Verdicts | None = None) -> list[str]:
    """The table of runs, the table of settings where seeds repeat, what is constant, every job that did not complete.

    Args:
        width: cells that no line passes, but for a path.
        verdicts: of the runs, where they were explained.
    """
    out: list[str] = []
    if collected.constant:
        alike = ", ".join(f"{k}={v}" for k, v in collected.constant.items())
        out += [*_wrapped(f"the same in all: {alike}", width), ""]
    if len(collected.runs):
        out += _runs(collected, width, verdicts or {})
        about = [line for text in about_ranks(collected, shown_runs) for line in _wrapped(text, width)]
        out += ["", *about] if about else []
        if len(collected.groups) < len(collected.runs):
            out += ["", "over seeds: mean [lowest, highest]", *_groups(collected, width)]
        out += _front(collected, width) + _knobs(collected, width)
        if collected.apart:
            text = f"no seeds of one another where they differ in: {'; '.join(_apart(collected.apart))}"
            out += ["", *_wrapped(text, width)]
    out += _unfinished(collected.jobs, width)
    if elsewhere := [job for job in collected.jobs if job.status == "completed" and not job.loadable]:
        places = list(dict.fromkeys(job.overrides["out"] for job in elsewhere))
        out += ["", *_wrapped(f"{plural(len(elsewhere), 'job')} measured into another folder: {some(places)}", width)]
    if collected.not_runs:
        out += ["", *_wrapped(f"no run, left out: {some(collected.not_runs)}", width)]
    return [*out, "", *_wrapped(legend(collected), width)] if len(collected.runs) else out


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return [indent + line for line in wrap(safe(text, one_line=True), width - len(indent))]


def blocks(header: Sequence[str], rows: Sequence[Sequence[Any]], keys: int, width: int) -> list[str]:
    """A table as several below one another where one line does not hold it; the first `keys` columns stand in each."""
    cells = [[header[i], *(number(row[i]) for row in rows)] for i in range(len(header))]
    sizes = [
        min(_WIDEST, max(map(len, column))) if i < keys else max(map(len, column)) for i, column in enumerate(cells)
    ]
    first = sum(sizes[:keys]) + 2 * keys
    parts: list[list[int]] = [[]]
    used = first
    for i in range(keys, len(header)):
        if parts[-1] and used + sizes[i] + 2 > width + 2:
            parts.append([])
            used = first
        parts[-1].append(i)
        used += sizes[i] + 2
    out: list[str] = []
    for part in parts:
        columns = [*range(keys), *part]
        shown = [[row[i] for i in columns] for row in rows]
        out += [*([""] if out else []), *table([header[i] for i in columns], shown, width).splitlines()]
    return out


# --- the runs ---------------------------------------------------------------------------------------------------------


def _runs(collected: Sweep, width: int, verdicts: Verdicts) -> list[str]:
    """Settings and verdicts; each task score; the other values."""
    frame = collected.ranked
    parameters = [*collected.parameters, *_varying(frame, ["origin", "step"])]
    rows, names = records(frame), shown_runs(frame["run"].tolist())
    of_each: list[list[Any]] = [[row["rank"], name] for name, row in zip(names, rows, strict=True)]
    told = [verdicts.get(row["run"]) for row in rows]
    settings = [
        [*key, *(_cut(row[p]) for p in parameters),
         *([MISSING if verdict is None else verdict_words(verdict)] if verdicts else [])]
        for key, row, verdict in zip(of_each, rows, told, strict=True)
    ]  # fmt: skip
    header = ["rank", "run"]
    out = blocks([*header, *short_names(parameters), *(["verdict"] if verdicts else [])], settings, 2, width)
    before: list[list[Any]] = [[None, BEFORE]] if collected.before else []
    for score in collected.scores:
        start = [[*key, _three(collected.before.get(score)), *([""] * 4)] for key in before]
        own = [[*key, *_of_score(row, score)] for key, row in zip(of_each, rows, strict=True)]
        columns = ["after", "95 %", "change", "95 %", "best"]
        out += ["", score, *blocks([*header, *columns], [*start, *own], 2, width)]
    shown = _metrics(frame)
    if shown:
        start = [[*key, *(collected.before.get(c) for c, _ in shown)] for key in before]
        own = [[*key, *(row[c] for c, _ in shown)] for key, row in zip(of_each, rows, strict=True)]
        out += ["", *blocks([*header, *(title for _, title in shown)], [*start, *own], 2, width)]
    return out


def _three(value: Any) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _of_score(row: Mapping[str, Any], score: str) -> list[str]:
    """Value with its interval, change since the start with its interval, best with its step."""
    best, at = row[f"{score}_best"], row[f"{score}_best_step"]
    change = row.get(f"{score}_change")
    return [
        _three(row[score]),
        bracket(row[f"{score}_low"], row[f"{score}_high"]),
        MISSING if change is None else signed(change),
        bracket(row.get(f"{score}_change_low"), row.get(f"{score}_change_high"), signed),
        MISSING if best is None else f"{best:.3f} @{at:.0f}",
    ]


def _metrics(frame: pd.DataFrame) -> list[tuple[str, str]]:
    from dpo_diag.diagnosis.sweep_values import METRICS

    return [(c, SHORT.get(c, c)) for c in METRICS.values() if c in frame and frame[c].notna().any()]


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _WIDEST else "…" + text[1 - _WIDEST :]


def _varying(frame: pd.DataFrame, columns: list[str]) -> list[str]:
    return [c for c in columns if frame[c].nunique(dropna=False) > 1]


# --- below the table --------------------------------------------------------------------------------------------------


def _groups(collected: Sweep, width: int) -> list[str]:
    frame = collected.groups
    parameters = [*frame.columns[: frame.columns.get_loc("origin")], *_varying(frame, ["origin", "step"])]
    values = [*_metrics(frame), *((s, s) for s in collected.scores)]

    def over_seeds(row: dict[str, Any], name: str) -> str:
        mean, low, high = (number(row[f"{name}{end}"], 3) for end in ("", "_low", "_high"))
        n = row.get(f"{name}_n") or 0
        return f"{mean} [{low}, {high}]" + (f" n={n:.0f}" if n > 0 else "")

    rows = [
        [*(_cut(row[p]) for p in parameters), row["runs"], *(over_seeds(row, v) for v, _ in values)]
        for row in records(frame)
    ]
    header = [*short_names(parameters), "runs", *(title for _, title in values)]
    return blocks(header, rows, len(parameters) + 1, width)


def _front(collected: Sweep, width: int) -> list[str]:
    """The runs that no other one beats in both; nothing where one run is all, or the two cannot be compared."""
    front, score = pareto(collected), collected.ranking.score
    if len(collected.runs) < 2 or not front or score is None:
        return []
    runs = collected.runs["run"].tolist()
    named = dict(zip(runs, shown_runs(runs), strict=True))
    told = f"no run beats these in both {outcome_words(score)} and {outcome_words(RISE)}: "
    return ["", *_wrapped(told + some((named[run] for run in front), _SHOWN), width)]


def _knobs(collected: Sweep, width: int) -> list[str]:
    """What each knob moved, told apart from nothing first; the rest stands in --json and on the page."""
    moved = [e for e in effects(collected) if e.change.value] if len(collected.runs) > 1 else []
    found = sorted(moved, key=lambda e: e.change.sign == 0)
    if not found:
        return []
    knobs = dict(zip(collected.parameters, short_names(collected.parameters), strict=True))
    rows = [
        [knobs[e.knob], f"{_cut(e.a)} → {_cut(e.b)}", outcome_words(e.outcome), signed(e.change.value),
         bracket(e.change.low, e.change.high, signed)]
        for e in found[:_SHOWN]
    ]  # fmt: skip
    header = ["knob", "values", "moved", "change", "95 %"]
    more = [f"and {len(found) - _SHOWN} more: --json, --html"] if len(found) > _SHOWN else []
    return ["", *table(header, rows, width).splitlines(), *more]


def _apart(differing: dict[str, list[str]]) -> list[str]:
    """What differs with its values, where they are short enough to read."""
    named = {"origin", "step", "model"}
    return [
        f"{key} ({some(safe(v, one_line=True) for v in values)})" if key in named else key
        for key, values in differing.items()
    ]


def _unfinished(jobs: Sequence[Job], width: int) -> Iterator[str]:
    """How many completed, and each other one with its status, what was set, how far it came, why, where to look."""
    rest = [job for job in jobs if job.status != "completed"]
    if not rest:
        return
    yield ""
    counts = {status: sum(job.status == status for job in jobs) for status in dict.fromkeys(j.status for j in jobs)}
    yield f"{len(jobs)} jobs: " + ", ".join(f"{n} {status}" for status, n in counts.items())
    names = shown_runs([str(job.folder) for job in jobs])
    named = dict.fromkeys(name for job in jobs for name in job.overrides)
    differing = [name for name in named if len({job.overrides.get(name) for job in jobs}) > 1]
    for name, job in zip(names, jobs, strict=True):
        if job.status == "completed":
            continue
        given = " ".join(f"{k}={v}" for k, v in job.overrides.items() if k in differing)
        told = "; ".join(t for t in (given, job.progress if job.status == "running" else "", job.reason) if t)
        head = f"{name}  {job.status}" + (": " if told else "")
        first, *more = _wrapped(head + cut(told, _REASON), width - 2)
        yield from (f"  {first}", *(f"    {line}" for line in more))
        if job.log is not None:
            yield f"    log: {safe(job.log, one_line=True)}"


def status_line(job: Job) -> str:
    """One job in a line, for who follows a sweep."""
    parts = [job.progress, job.reason]
    told = "; ".join(p for p in parts if p)
    return safe(f"{job.name}: {job.status}" + (f", {told}" if told else ""), one_line=True)
