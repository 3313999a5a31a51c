"""`dpo-diag sweep`: one table over several runs, failed ones listed."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.outputs.sanitize import for_terminal, frame_for_csv
from dpo_diag.report.sweep import METRICS, Sweep, sweep

SHORT = {
    "chosen_ppl_seq_mean": "chosen ppl",
    "rejected_ppl_seq_mean": "rejected ppl",
    "both_fell": "both fell",
    "reward_accuracy": "reward acc",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders or a glob, e.g. 'runs/sql_dpo/*/*'")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    parser.add_argument("--csv", metavar="FILE", help="write the table of runs as CSV, too")


def run(args: argparse.Namespace) -> int:
    found = sweep(args.runs)
    if args.csv:
        _write_csv(found.runs, Path(args.csv))
    if args.json:
        print(json.dumps(document(found), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(lines(found)))
        if args.csv:
            print(args.csv)
    return 0 if len(found.runs) else 1


def document(found: Sweep) -> dict[str, Any]:
    """{"runs": [...], "groups": [...], "constant": {...}, "failed": [...]}; NaN is null."""
    return {
        "runs": _records(found.runs),
        "groups": _records(found.groups),
        "constant": found.constant,
        "failed": found.failed,
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]


def lines(found: Sweep) -> list[str]:
    """The table of runs, the table of settings where seeds repeat, what is constant, what failed."""
    out = []
    if found.constant:
        out += ["alike in all: " + ", ".join(f"{k}={v}" for k, v in found.constant.items()), ""]
    if len(found.runs):
        out += _align(_rows(found.runs)) + [""]
        if len(found.groups) < len(found.runs):
            out += ["over seeds: mean [lowest, highest]", *_align(_groups(found.groups)), ""]
    if found.failed:
        out.append(f"not in the table, failed or unfinished: {len(found.failed)}")
        out += [*(f"  {f['run']}: {f['why']}" for f in found.failed), ""]
    out.append("loss and perplexities: last evaluation; [ ] after a score: 95 % Wilson interval")
    return [for_terminal(line) for line in out]


def _scores(frame: pd.DataFrame) -> list[str]:
    return [c for c in frame.columns if c.endswith("]") and f"{c}_n" in frame]


def _rows(frame: pd.DataFrame) -> list[list[str]]:
    root = os.path.commonpath([os.path.dirname(r) for r in frame["run"]]) if len(frame) > 1 else ""
    names = [str(os.path.relpath(r, root)) if root else r for r in frame["run"]]
    parameters = list(frame.columns[1 : frame.columns.get_loc("step")])
    metrics = [m for m in METRICS.values() if frame[m].notna().any()]
    scores = _scores(frame)
    table = [["run", *parameters, "step", *(SHORT.get(m, m) for m in metrics), *scores]]
    for name, row in zip(names, frame.to_dict("records"), strict=True):
        told = [_score(row, s) for s in scores]
        table.append(
            [name, *(str(row[p]) for p in parameters), _number(row["step"]), *(_number(row[m]) for m in metrics), *told]
        )
    return table


def _score(row: dict[str, Any], name: str) -> str:
    if not math.isfinite(row[name]):
        return "–"
    n = row[f"{name}_n"]
    return (
        f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}] n={n:.0f}"
        if n > 0
        else f"{row[name]:.3f}"
    )


def _groups(frame: pd.DataFrame) -> list[list[str]]:
    parameters = list(frame.columns[: frame.columns.get_loc("runs")])
    values = [m for m in METRICS.values() if m in frame and frame[m].notna().any()] + _scores(frame)
    table = [[*parameters, "runs", *(SHORT.get(v, v) for v in values)]]
    for row in frame.to_dict("records"):
        told = [
            f"{_number(row[v])} [{_number(row[f'{v}_low'])}, {_number(row[f'{v}_high'])}]"
            + (f" n={row[f'{v}_n']:.0f}" if row.get(f"{v}_n", 0) > 0 else "")
            for v in values
        ]
        table.append([*(str(row[p]) for p in parameters), str(row["runs"]), *told])
    return table


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"


def _align(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame_for_csv(frame).to_csv(path, index=False)
    except OSError as error:
        raise DiagError(
            "the table cannot be written", where=path, got=error.strerror, hint="name another file"
        ) from error
