"""Wide CSV, TSV or Parquet: a step column and one column a metric, as W&B, TensorBoard and notebooks export them.

Knows W&B's `<run> - train/loss` columns with their __MIN and __MAX, TensorBoard's one-scalar export (Wall time, Step,
Value; the metric is in the file's name), notebook tables (`Step`, `Training Loss`, `rewards / chosen`) and long tables
(step, name, value).
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dpo_diag.importers.cells import Cells
from dpo_diag.importers.keys import SPLIT_WORDS, STEP_KEYS, clean_key, with_split
from dpo_diag.importers.log_format import Head, LogFormat, register
from dpo_diag.importers.numbers import is_missing, number
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import RowStore
from dpo_diag.importers.several import StackedRuns, choose, has_rows, take
from dpo_diag.records.row_files import BadRow, read_rows

DECIDING = 10_000
"""Rows by which a column's decimal mark is decided."""


def _has_header(head: Head) -> bool:
    return bool(head.columns)


def read_wide_csv(path: Path, options: Options) -> Parsed:
    """Read the rows; empty cells are missing, `nan` is NaN."""
    parsed = Parsed.of("csv", [path], options)
    names: dict[str, str] | None = None
    runs: list[str] = []
    stacked = StackedRuns(lambda: RowStore(parsed.skipped, parsed.store.trainer))
    rows = read_rows(path, parsed.skipped)
    first = list(islice(rows, DECIDING))
    numerals = Cells((cells for _, cells in first if not isinstance(cells, BadRow)), options.decimal, path)
    for line, cells in chain(first, rows):
        if isinstance(cells, BadRow):
            parsed.skipped.add(line, str(cells))
            continue
        parsed.n_rows += 1
        if names is None:
            names, runs, taken = _column_names(list(cells), path, options.run)
            if taken:
                take(parsed, runs, taken)
        row: dict[str, Any] = {
            names[key]: numerals.plain(key, value)
            for key, value in cells.items()
            if names.get(key) and not is_missing(value)
        }
        if {"name", "value"} <= set(row) and (number(row["value"]) is not None):
            row[row.pop("name")] = row.pop("value")
        if isinstance(split := row.get("split"), str):
            row = with_split(row, split)
        stacked.of(row).add(row, line)
    parsed.store, _ = stacked.taken(parsed, replace(options, run=None) if runs else options, path, has_rows)
    return parsed.with_steps(options)


def _column_names(header: list[str], path: Path, run: str | None) -> tuple[dict[str, str], list[str], str | None]:
    """(header -> key of the alias table, runs, the one taken); W&B's helper columns and other runs' are left out."""
    lower = [clean_key(h).lower() for h in header]
    if "value" in lower and "wall time" in lower:
        tag = re.sub(r"\.(csv|tsv)(\.\w+)?$", "", path.name)
        tag = tag.rsplit("tag-", 1)[-1].replace("_", "/", 1) if "tag-" in tag else tag
        return {h: {"value": tag, "step": "step"}.get(low, "") for h, low in zip(header, lower, strict=True)}, [], None
    split = [(h, h.rsplit(" - ", 1)) for h in header]
    runs = sorted({parts[0] for _, parts in split if len(parts) == 2})
    if {name.lower() for name in runs} <= SPLIT_WORDS:  # `train - loss`: not a run's name
        return {column: "/".join(parts) for column, parts in split}, [], None
    chosen = choose(runs, run, path, runs[0]) if runs else None
    names = {}
    for column, parts in split:
        if column.endswith(("__MIN", "__MAX")) or (len(parts) == 2 and parts[0] != chosen):
            names[column] = ""
        else:
            names[column] = parts[-1]
    steps = [n for n in names.values() if clean_key(n).lower() in STEP_KEYS]
    if not steps and header and (header[0] == "" or lower[0] in ("unnamed: 0", "index")):
        names[header[0]] = ""
    return names, runs, chosen


register(
    LogFormat(
        name="csv",
        description="wide CSV or TSV (W&B and TensorBoard exports, notebook tables)",
        trainers=("W&B", "TensorBoard", "unsloth", "any"),
        file_name="wandb_export.csv",
        example='"Step","sunny-7 - train/loss","sunny-7 - train/loss__MIN"\n10,0.6931,0.6931\n',
        order=70,
        why="a first line that names columns, unless dictionaries are printed below it",
        sniff=_has_header,
        read=read_wide_csv,
    )
)
