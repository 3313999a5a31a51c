"""Tables in JSON as rows of a log: numbers of rows are steps, and the name of a set may stand around its columns.

`records.json_tables` has the forms. `{"train": {"loss": [0.69]}, "eval": ...}` is a table for each split. Numbers of
rows are steps where they are no plain count from 0 and no column names a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpo_diag.importers.keys import SPLIT_WORDS, STEP_KEYS, clean_key, place, with_split
from dpo_diag.importers.numbers import step_number
from dpo_diag.records.json_tables import Table, of_lists, table_in


def rows_of_table(document: Mapping[str, Any], least: int = 2) -> list[dict[str, Any]] | None:
    """The rows of a table; None where it is none, or none of a log.

    Columns of different lengths have no rows: None.

    Args:
        least: columns of lists that make a table; a single one may be a row that holds a list.
    """
    inner = list(document.values())
    if inner and all(isinstance(v, Mapping) for v in inner) and {str(k).lower() for k in document} <= SPLIT_WORDS:
        return _of_splits(document)
    if (table := table_in(document)) is not None:
        # Objects by number under a name may be a row's own: they are columns where one of them is a log's.
        by_column = bool(table.rows) and set(table.rows[0]) <= set(document)
        return None if by_column and not is_log(document) else _numbered(table)
    columns = {k: v for k, v in document.items() if isinstance(v, list)}
    beside = [k for k, v in document.items() if isinstance(v, (int, float))]
    if is_log(beside) or not {clean_key(k).lower() for k in beside}.isdisjoint(STEP_KEYS):
        return None  # a row with a loss or a step of its own, whatever lists it holds
    if not is_log(columns) or any(isinstance(v, (list, Mapping)) for c in columns.values() for v in c):
        return None
    return of_lists(columns) if len(columns) >= least else None


def _of_splits(document: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """A table for each split; a step or an epoch keeps its name."""
    rows: list[dict[str, Any]] = []
    for split, table in document.items():
        of_split = rows_of_table(table, least=1)
        if of_split is None:
            return None
        rows += [with_split(row, str(split)) for row in of_split]
    return rows


def _numbered(table: Table) -> list[dict[str, Any]]:
    """The rows, with their labels as steps where those are steps."""
    given = [step_number(label) for label in table.labels or ()]
    names = {clean_key(str(k)).lower() for row in table.rows for k in row}
    counted = given == list(range(len(given)))
    if counted or None in given or names & set(STEP_KEYS):
        return table.rows
    return [{"step": n, **row} for n, row in zip(given, table.rows, strict=True)]


def is_log(columns: Iterable[str]) -> bool:
    """Whether one of the columns is a metric of a training."""
    return any((where := place(str(name))) is not None and where.known for name in columns)


def uneven(document: Any) -> Sequence[str]:
    """Columns of a log that have other lengths than the first one; none where it is no such table."""
    columns = {k: v for k, v in document.items() if isinstance(v, list)} if isinstance(document, Mapping) else {}
    if len(columns) < 2 or not is_log(columns) or len(columns) < len(document):
        return ()
    lengths = {name: len(column) for name, column in columns.items()}
    first = next(iter(lengths.values()))
    return [f"{name}: {n}" for name, n in lengths.items()] if any(n != first for n in lengths.values()) else ()
