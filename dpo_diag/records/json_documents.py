"""Rows in one JSON document: an array, an object around it, columns instead of rows, or objects one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "samples", "instances", "pairs", "dataset")
_SIDES = ("chosen", "rejected", "chosen_sum_logp", "rejected_sum_logp")
_MESSAGE_KEYS = ("role", "from")


_NEXT = re.compile(r"[\s,]*(?=\S)")
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
    decoder, line, counted = json.JSONDecoder(), 1, 0
    while match := _NEXT.match(text, position):
        line += text.count("\n", counted, match.end())
        counted = position = match.end()
        if text[position] == "]":
            return
        try:
            value, position = decoder.raw_decode(text, position)
            yield line, value
        except (ValueError, RecursionError):
            yield line, BROKEN
            position = text.find("{", position + 1)
            if position < 0:
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
    if isinstance(document.get("columns"), list) and isinstance(document.get("data"), list):
        return [dict(zip(document["columns"], row, strict=False)) for row in document["data"]]  # pandas: orient="split"
    if all(key.isdigit() and isinstance(value, Mapping) for key, value in document.items()):
        return list(document.values())  # pandas: orient="index"
    arrays = arrays_of_rows(document)
    if len(arrays) > 1:
        raise SeveralArrays(", ".join(arrays))
    if arrays:
        rows = document[arrays[0]]
        # What the hub's viewer serves: every row in an object with its number.
        return [row["row"] if isinstance(row.get("row"), Mapping) and "row_idx" in row else row for row in rows]
    return [*_of_columns(document)] or [document]


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


def _of_columns(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an object of columns of one length, as pandas writes it ({name: {"0": ...}}, {name: [...]}); else []."""
    columns: dict[str, list[Any]] = {}
    for name, values in document.items():
        if isinstance(values, Mapping) and values and all(key.isdigit() for key in values):
            columns[name] = list(values.values())
        elif isinstance(values, list) and values and not any(isinstance(value, Mapping) for value in values):
            columns[name] = values
        else:
            return []
    if len(columns) < 2 or len({len(values) for values in columns.values()}) != 1:
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
