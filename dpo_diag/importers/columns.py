"""Tables written column by column, or with their rows' numbers, as rows: pandas' `to_json` and plain lists.

`{"loss": {"0": 0.69}}` (columns), `{"0": {"loss": 0.69}}` (index), `{"columns": [...], "data": [[...]]}` (split),
`{"loss": [0.69]}`, and `{"train": {"loss": [0.69]}, "eval": ...}`. Numbers of rows are steps where they are no plain
count from 0 and no column names a step.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpo_diag.importers.keys import SPLIT_WORDS, STEP_KEYS, clean_key, place, with_split
from dpo_diag.importers.numbers import step_number

COLUMNS_BEGIN = re.compile(
    r'\{\s*"[^"\n]{1,80}"\s*:\s*(?:\{\s*"\d+"\s*:|\[\s*(?:-?[\d.]|NaN|null))|\{\s*"(?:columns|index)"\s*:\s*\['
)
"""How such a document begins."""
_COUNTED = 16
"""Digits of a number of a row, at most."""


def rows_of_table(document: Mapping[str, Any], least: int = 2) -> list[dict[str, Any]] | None:
    """The rows of a table in one of these forms; None where it is none, or none of a log.

    Columns of different lengths have no rows: None.

    Args:
        least: columns of lists that make a table; a single one may be a row that holds a list.
    """
    if {"columns", "data"} <= set(document) and isinstance(document["data"], list):
        return _split(document)
    inner = list(document.values())
    if inner and all(isinstance(v, Mapping) for v in inner):
        if {str(k).lower() for k in document} <= SPLIT_WORDS:
            return _of_splits(document)
        if all(_is_count(k) for k in document):
            return _numbered(document, (dict(v) for v in inner))
        numbers = {k: None for v in inner for k in v}
        if numbers and all(_is_count(k) for k in numbers) and _is_log(document):
            rows = ({name: column[n] for name, column in document.items() if n in column} for n in numbers)
            return _numbered(numbers, rows)
        return None
    columns = {k: v for k, v in document.items() if isinstance(v, list)}
    beside = [k for k, v in document.items() if isinstance(v, (int, float))]
    if _is_log(beside) or not {clean_key(k).lower() for k in beside}.isdisjoint(STEP_KEYS):
        return None  # a row with a loss or a step of its own, whatever lists it holds
    if not _is_log(columns) or any(isinstance(v, (list, Mapping)) for c in columns.values() for v in c):
        return None
    if len(columns) < least or len({len(v) for v in columns.values()}) > 1:
        return None
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _of_splits(document: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """A table for each split; a step or an epoch keeps its name."""
    rows: list[dict[str, Any]] = []
    for split, table in document.items():
        of_split = rows_of_table(table, least=1)
        if of_split is None:
            return None
        rows += [with_split(row, str(split)) for row in of_split]
    return rows


def _split(document: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    names, data = document["columns"], document["data"]
    if not isinstance(names, list) or not all(isinstance(row, list) and len(row) == len(names) for row in data):
        return None
    rows = [dict(zip(map(str, names), row, strict=True)) for row in data]
    index = document.get("index")
    return _numbered(index, rows) if isinstance(index, list) and len(index) == len(rows) else rows


def _numbered(numbers: Iterable[Any], rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with their numbers as steps where those are steps."""
    known, given = list(rows), [step_number(n) for n in numbers]
    names = {clean_key(str(k)).lower() for row in known for k in row}
    counted = given == list(range(len(given)))
    if counted or None in given or names & set(STEP_KEYS):
        return known
    return [{"step": n, **row} for n, row in zip(given, known, strict=True)]


def _is_count(key: Any) -> bool:
    return str(key).isdigit() and len(str(key)) <= _COUNTED


def _is_log(columns: Iterable[str]) -> bool:
    """Whether one of the columns is a metric of a training, beside another or a step."""
    names = [str(name) for name in columns]
    return any((where := place(name)) is not None and where.known for name in names)


def uneven(document: Any) -> Sequence[str]:
    """Columns of a log that have other lengths than the first one; none where it is no such table."""
    columns = {k: v for k, v in document.items() if isinstance(v, list)} if isinstance(document, Mapping) else {}
    if len(columns) < 2 or not _is_log(columns) or len(columns) < len(document):
        return ()
    lengths = {name: len(column) for name, column in columns.items()}
    first = next(iter(lengths.values()))
    return [f"{name}: {n}" for name, n in lengths.items()] if any(n != first for n in lengths.values()) else ()
