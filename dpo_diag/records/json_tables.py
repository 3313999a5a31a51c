"""A table in one JSON document: what pandas' `to_json` writes in its orients, and columns as plain lists.

columns `{"loss": {"0": 0.69}}`, index `{"0": {"loss": 0.69}}`, split `{"columns": [...], "index": [...], "data":
[[...]]}`, table `{"schema": {...}, "data": [{...}]}`, lists `{"loss": [0.69]}`. records is a list of rows as it stands,
and values (`[[0.69]]`) holds no names: `nameless` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

BEGINS = re.compile(
    r'\{\s*"[^"\n]{1,80}"\s*:\s*(?:\{\s*"\d+(?:\.0)?"\s*:|\[\s*(?:-?[\d.]|NaN|null))|'
    r'\{\s*"(?:columns|index)"\s*:\s*\[|\{\s*"schema"\s*:\s*\{\s*"fields"'
)
"""How such a document begins."""
BEGINS_NAMELESS = re.compile(r'\[\s*\[\s*(?:-?\d[\d.eE+-]*|"[^"\n]*"|null|NaN)\s*[,\]]')
NAMELESS = "a table without the names of its columns"
WITH_NAMES = 'save it with them: to_json(FILE, orient="records")'
_LABEL = re.compile(r"\d{1,16}(?:\.0)?")


class Table(NamedTuple):
    """Rows by the names of their columns, and what pandas' index calls them; None where it has no index."""

    rows: list[dict[str, Any]]
    labels: Sequence[Any] | None = None


def table_in(document: Mapping[str, Any]) -> Table | None:
    """The table of a document in one of pandas' orients whose rows are numbered; None where it is in none."""
    if isinstance(document.get("data"), list):
        if isinstance(document.get("columns"), list):
            return _split(document["columns"], document["data"], document.get("index"))
        if isinstance(schema := document.get("schema"), Mapping) and "fields" in schema:
            return _with_schema(document["data"], schema.get("primaryKey"))
    if not document or not all(isinstance(value, Mapping) for value in document.values()):
        return None
    if _are_labels(document):
        return Table([dict(row) for row in document.values()], list(document))
    labels = list(dict.fromkeys(label for column in document.values() for label in column))
    if not labels or not _are_labels(labels):
        return None
    rows = [{name: column[label] for name, column in document.items() if label in column} for label in labels]
    return Table(rows, labels)


def of_lists(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]] | None:
    """The rows of columns as lists; None where they differ in length, or there is none."""
    if len({len(values) for values in columns.values()}) != 1:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def nameless(document: Any) -> bool:
    """Whether it is rows without names: pandas' orient="values"."""
    return isinstance(document, list) and bool(document) and all(isinstance(row, list) for row in document)


def _split(names: Sequence[Any], data: Sequence[Any], index: Any) -> Table | None:
    if not all(isinstance(row, list) and len(row) == len(names) for row in data):
        return None
    rows = [dict(zip(map(str, names), row, strict=True)) for row in data]
    return Table(rows, index if isinstance(index, list) and len(index) == len(rows) else None)


def _with_schema(data: Sequence[Any], key: Any) -> Table | None:
    """Rows that hold their label as a column of their own: taken out where pandas gave it the name `index`."""
    if not all(isinstance(row, Mapping) for row in data):
        return None
    if key != ["index"] or not all("index" in row for row in data):
        return Table([dict(row) for row in data])
    rows = [{name: value for name, value in row.items() if name != "index"} for row in data]
    return Table(rows, [row["index"] for row in data])


def _are_labels(keys: Iterable[Any]) -> bool:
    """Whether all are numbers of rows."""
    return all(_LABEL.fullmatch(str(key)) for key in keys)
