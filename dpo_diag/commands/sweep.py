"""`dpo-diag sweep`: one table over several runs, failed ones listed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from cyclopts import Parameter

from dpo_diag.diagnosis.sweep import METRICS, Sweep
from dpo_diag.diagnosis.sweep import sweep as collect
from dpo_diag.errors import DiagError
from dpo_diag.text import MISSING, frame_for_csv, number, records, safe, table, to_json

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
        runs: run folders or a glob, e.g. 'runs/sql_dpo/*/*'.
        json: one JSON document on standard output, nothing else there.
        csv: write the table of runs as CSV, too.
    """
    collected = collect(runs)
    if csv:
        _write_csv(collected.runs, csv)
    if json:
        print(to_json(document(collected), indent=2))
    else:
        print("\n".join(lines(collected)))
        if csv:
            print(csv)
    return 0 if len(collected.runs) else 1


def document(collected: Sweep) -> dict[str, Any]:
    """{"runs": [...], "groups": [...], "constant": {...}, "failed": [...]}; NaN is null."""
    return {"runs": collected.runs, "groups": collected.groups, "constant": collected.constant,
            "failed": collected.failed}  # fmt: skip


def lines(collected: Sweep) -> list[str]:
    """The table of runs, the table of settings where seeds repeat, what is constant, what failed."""
    out = []
    if collected.constant:
        out += ["the same in all: " + ", ".join(f"{k}={v}" for k, v in collected.constant.items()), ""]
    if len(collected.runs):
        out += [table(*_rows(collected.runs), width=_WIDTH), ""]
        if len(collected.groups) < len(collected.runs):
            out += ["over seeds: mean [lowest, highest]", table(*_groups(collected.groups), width=_WIDTH), ""]
    if collected.failed:
        out.append(f"not in the table, failed or unfinished: {len(collected.failed)}")
        out += [*(f"  {safe(f['run'], one_line=True)}: {safe(f['why'], one_line=True)}" for f in collected.failed), ""]
    return [*out, "loss and perplexities: last evaluation; [ ] after a score: 95 % Wilson interval"]


def _scores(frame: pd.DataFrame) -> list[str]:
    return [c for c in frame.columns if c.endswith("]") and f"{c}_n" in frame]


def _rows(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    root = os.path.commonpath([os.path.dirname(r) for r in frame["run"]]) if len(frame) > 1 else ""
    names = [str(os.path.relpath(r, root)) if root else r for r in frame["run"]]
    parameters = list(frame.columns[1 : frame.columns.get_loc("step")])
    metrics = [m for m in METRICS.values() if frame[m].notna().any()]
    scores = _scores(frame)
    rows = [
        [name, *(str(row[p]) for p in parameters), *(row[c] for c in ["step", *metrics]),
         *(_score(row, s) for s in scores)]
        for name, row in zip(names, records(frame), strict=True)
    ]  # fmt: skip
    return ["run", *parameters, "step", *(SHORT.get(m, m) for m in metrics), *scores], rows


def _score(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return MISSING
    n = row[f"{name}_n"] or 0
    interval = f" [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}] n={n:.0f}" if n > 0 else ""
    return f"{row[name]:.3f}{interval}"


def _groups(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    parameters = list(frame.columns[: frame.columns.get_loc("runs")])
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
