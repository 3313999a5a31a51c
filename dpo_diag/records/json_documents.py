"""Rows in one JSON document: an array, an object around it, columns instead of rows, or objects one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dpo_diag.documents import parse_json_at
from dpo_diag.records.json_tables import of_lists, table_in

_WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "samples", "instances", "pairs", "dataset")
_SIDES = ("chosen", "rejected", "chosen_sum_logp", "rejected_sum_logp")
_COLUMNS = frozenset((*_SIDES, "prompt", "instruction", "question", "messages", "conversations", "completion"))
_MESSAGE_KEYS = ("role", "from")

_NEXT = re.compile(r"[\s,]*(?=\S)")
SALVAGED = 4
"""How often a broken text is read to find whole objects in it."""
DEEP = 10_000
"""Characters that an object is counted as whose nesting was too deep to read."""
BROKEN = object()
"""Stands for a value that is cut off or broken."""


class SeveralArrays(ValueError):
    """The object holds several arrays of rows; the message names them."""


def values_in(text: str, begin: re.Pattern[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(line, value) of JSON values one after another, commas between them or not; BROKEN for one that is cut off.

    Args:
        begin: what stands before the first one; a list ends at its bracket.
    """
    start = begin.search(text) if begin else None
    position = start.end() if start else 0
    line, counted, left = 1, 0, SALVAGED * len(text) + DEEP
    while match := _NEXT.match(text, position):
        line += text.count("\n", counted, match.end())
        counted = position = match.end()
        if text[position] == "]":
            return
        try:
            value, position = parse_json_at(text, position)
            yield line, value
        except ValueError as error:
            yield line, BROKEN
            # Of what is broken an inner object may be whole; how often the text is read for that has an end.
            left -= getattr(error, "pos", position + DEEP) - position
            position = text.find("{", position + 1)
            if position < 0 or left < 0:
                return


def rows_in(document: Any) -> list[Any] | None:
    """The rows that a document holds; a single object that holds none is a row itself; None for a text or number.

    Raises:
        SeveralArrays: it is not said which array.
    """
    if isinstance(document, list):
        return document
    if not isinstance(document, Mapping):
        return None
    if (table := table_in(document)) is not None:
        return list(table.rows)
    if _is_indexed(document):
        return list(document.values())
    arrays = arrays_of_rows(document)
    if len(arrays) > 1:
        raise SeveralArrays(", ".join(arrays))
    if arrays:
        rows = document[arrays[0]]
        # What the hub's viewer serves: every row in an object with its number.
        return [row["row"] if isinstance(row.get("row"), Mapping) and "row_idx" in row else row for row in rows]
    return _of_columns(document) or [document]


def is_one_row(document: Mapping[str, Any]) -> bool:
    """Whether an object is a row itself."""
    try:
        rows = rows_in(document)
    except SeveralArrays:
        return False
    return rows is not None and len(rows) == 1 and rows[0] is document


def arrays_of_rows(document: Mapping[str, Any]) -> list[str]:
    """Keys whose value is a list of rows: rows of pairs, or under a name for rows anything but messages."""
    named = [
        key for key, value in document.items()
        if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value)
    ]  # fmt: skip
    pairs = [key for key in named if any(side in v for v in document[key] for side in _SIDES)]
    return pairs or [
        key for key in named if key in _WRAPPERS and not any(k in v for v in document[key] for k in _MESSAGE_KEYS)
    ]


def _is_indexed(document: Mapping[str, Any]) -> bool:
    """Whether each value is a row with the same names, under an id of its own: pandas' orient="index"."""
    rows = list(document.values())
    if len(rows) < 2 or not all(isinstance(row, Mapping) and set(row) == set(rows[0]) for row in rows):
        return False
    return not _COLUMNS.isdisjoint(rows[0]) and _COLUMNS.isdisjoint(document)


def _of_columns(document: Mapping[str, Any]) -> list[Any]:
    """Rows of an object of columns of one length, {name: [...]}; else []."""
    lists = [
        isinstance(values, list) and bool(values) and not any(isinstance(value, Mapping) for value in values)
        for values in document.values()
    ]
    return list(of_lists(document) or ()) if len(lists) > 1 and all(lists) else []
