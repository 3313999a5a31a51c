"""`dpo-diag sweep`: one table over several runs, failed ones listed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_sweep, say_next
from dpo_diag.records.job_folders import run_folders
from dpo_diag.text import MISSING, bracket, frame_for_csv, number, records, safe, signed, some, table, to_json

if TYPE_CHECKING:
    import pandas as pd

    from dpo_diag.diagnosis.sweep import Sweep

SHORT = {
    "chosen_ppl_seq_mean": "chosen ppl",
    "rejected_ppl_seq_mean": "rejected ppl",
    "both_fell": "both fell",
    "reward_accuracy": "reward acc",
}


def sweep(
    runs: Annotated[list[str], Parameter(consume_multiple=True)], /, *, json: bool = False, csv: Path | None = None
) -> int:
    """One table over several runs, failed ones listed.

    Args:
        runs: run folders, a multirun's folder, or a glob, e.g. 'runs/sql_dpo/*/*'.
        json: one JSON document on standard output, nothing else there.
        csv: write the table of runs as CSV, too.
    """
    run_folders(runs)  # a mistyped path is answered before anything heavy is imported
    from dpo_diag.diagnosis.sweep import sweep as collect

    collected = collect(runs)
    if csv:
        _write_csv(collected.runs, csv)
    following = after_sweep([str(run) for run in collected.runs["run"]] if len(collected.runs) else [])
    if json:
        print(to_json({**document(collected), "next": following}, indent=2))
    else:
        print("\n".join(lines(collected)))
        if csv:
            print(csv)
        say_next(following)
    return 0 if len(collected.runs) else 1


def document(collected: Sweep) -> dict[str, Any]:
    """{"runs": [...], "groups": [...], "constant", "apart", "failed", "not_runs"}; NaN is null, an override that is a
    number is one, and one that a run does not have is null."""
    return {
        "runs": [_typed(row) for row in records(collected.runs)],
        "groups": [_typed(row) for row in records(collected.groups)],
        "constant": {name: _typed_value(value) for name, value in collected.constant.items()},
        "apart": collected.apart, "failed": collected.failed, "not_runs": collected.not_runs,
    }  # fmt: skip


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


_WORDS = {"": None, "null": None, "true": True, "false": False}


def lines(collected: Sweep) -> list[str]:
    """The table of runs, the table of settings where seeds repeat, what is constant, what failed."""
    out = []
    if collected.constant:
        out += ["the same in all: " + ", ".join(f"{k}={v}" for k, v in collected.constant.items()), ""]
    if len(collected.runs):
        out += [table(*_rows(collected.runs), width=_WIDTH), ""]
        if len(collected.groups) < len(collected.runs):
            out += ["over seeds: mean [lowest, highest]", table(*_groups(collected.groups), width=_WIDTH), ""]
        if collected.apart:
            out += [f"no seeds of one another where they differ in: {'; '.join(_apart(collected.apart))}", ""]
    if collected.failed:
        out.append(f"not in the table, failed or unfinished: {len(collected.failed)}")
        out += [*(f"  {safe(f['run'], one_line=True)}: {safe(f['why'], one_line=True)}" for f in collected.failed), ""]
    if collected.not_runs:
        out += [f"no run, left out: {some(safe(name, one_line=True) for name in collected.not_runs)}", ""]
    return [*out, _legend(collected.runs)]


def _legend(runs: pd.DataFrame) -> str:
    """What the numbers are: of an evaluation, or of training batches where a run has none."""
    batches = list(runs.loc[runs["batches"], "run"]) if len(runs) else []
    training = "mean of the last logged training rows, no evaluation is recorded"
    if batches and len(batches) == len(runs):
        numbers = training
    else:
        names = some((safe(name, one_line=True) for name in batches), 3)
        numbers = "last evaluation" + (f" (of {names}: {training})" if batches else "")
    scores = (
        "; [ ] after a score: 95 % interval over its questions, then its change since its first evaluation with the "
        "interval that explain gives it"
    )
    return f"loss and perplexities: {numbers}{scores if len(runs) and _scores(runs) else ''}"


def _apart(differing: dict[str, list[str]]) -> list[str]:
    """What differs with its values, where they are short enough to read."""
    named = {"origin", "step", "model"}
    return [
        f"{key} ({some(safe(v, one_line=True) for v in values)})" if key in named else key
        for key, values in differing.items()
    ]


def _scores(frame: pd.DataFrame) -> list[str]:
    return [c for c in frame.columns if c.endswith("]") and f"{c}_n" in frame]


def _rows(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    from dpo_diag.diagnosis.sweep import METRICS

    paths = [os.path.abspath(r) for r in frame["run"]]
    root = os.path.commonpath([os.path.dirname(p) for p in paths]) if len(frame) > 1 else ""
    names = [str(os.path.relpath(p, root)) if root else r for p, r in zip(paths, frame["run"], strict=True)]
    parameters = [*frame.columns[1 : frame.columns.get_loc("origin")], *_varying(frame, ["origin"])]
    metrics = [m for m in METRICS.values() if frame[m].notna().any()]
    scores = _scores(frame)
    rows = [
        [name, *(str(row[p]) for p in parameters), *(row[c] for c in ["step", *metrics]),
         *(_score(row, s) for s in scores)]
        for name, row in zip(names, records(frame), strict=True)
    ]  # fmt: skip
    return ["run", *parameters, "step", *(SHORT.get(m, m) for m in metrics), *scores], rows


def _varying(frame: pd.DataFrame, columns: list[str]) -> list[str]:
    return [c for c in columns if frame[c].nunique(dropna=False) > 1]


def _score(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return MISSING
    n = row[f"{name}_n"] or 0
    text = (
        f"{row[name]:.3f} {bracket(row[f'{name}_low'], row[f'{name}_high'])} n={n:.0f}" if n > 0 else f"{row[name]:.3f}"
    )
    change, low, high = (row.get(f"{name}_change{end}") for end in ("", "_low", "_high"))
    return text if change is None else f"{text}, {signed(change)} {bracket(low, high, signed)}"


def _groups(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    from dpo_diag.diagnosis.sweep import METRICS

    parameters = [*frame.columns[: frame.columns.get_loc("origin")], *_varying(frame, ["origin", "step"])]
    values = [m for m in METRICS.values() if m in frame and frame[m].notna().any()] + _scores(frame)

    def over_seeds(row: dict[str, Any], name: str) -> str:
        mean, low, high = (number(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
        n = row.get(f"{name}_n") or 0
        return f"{mean} [{low}, {high}]" + (f" n={n:.0f}" if n > 0 else "")

    rows = [
        [*(str(row[p]) for p in parameters), row["runs"], *(over_seeds(row, v) for v in values)]
        for row in records(frame)
    ]
    return [*parameters, "runs", *(SHORT.get(v, v) for v in values)], rows


_WIDTH = 240
"""A sweep's table is wider than a terminal: it is read in a pager or pasted, and no column may be lost."""


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame_for_csv(frame).to_csv(path, index=False)
    except OSError as error:
        raise DiagError(
            "the table cannot be written", where=path, got=error.strerror, hint="name another file"
        ) from error
