"""A file's columns as a sample of its rows shows them, and what the user says a column is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dpo_diag.errors import DiagError, did_you_mean
from dpo_diag.rows.cells import is_chat, printed
from dpo_diag.rows.parts import decoded_chat

Kind = str
"""text, messages, number, texts, objects, object, list or empty."""
SAMPLE = 64
"""Rows that decide a file's form; every further row is held against it."""
ROLES = ("prompt", "chosen", "rejected", "system", "tools", "better")
Wanted = Mapping[str, tuple[str, ...] | None]
"""Role -> the columns that hold it; None: not to be read."""


def wanted(columns: Mapping[str, Any]) -> Wanted:
    """The user's `data.columns` as role -> columns: a name, a list of names (joined), false for "do not read".

    Raises:
        DiagError: another value.
    """
    found: dict[str, tuple[str, ...] | None] = {}
    for role, value in columns.items():
        if value is None:
            continue
        if value is False:
            found[role] = None
        elif isinstance(value, str) and value:
            found[role] = (value,)
        elif isinstance(value, Sequence) and value and all(isinstance(name, str) for name in value):
            found[role] = tuple(value)
        else:
            raise DiagError("not a column", where=f"data.columns.{role}", got=value, usage=True,
                            expected="a column's name, a list of names, or false for none")  # fmt: skip
        if role != "prompt" and len(found[role] or ()) > 1:
            raise DiagError("one column holds it", where=f"data.columns.{role}", got=value, usage=True)
    return found


def simple(name: str) -> str:
    """A column's name without case and separators: `Chosen Response` is chosen_response."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")


@dataclass(frozen=True)
class Columns:
    """Names and kinds of a file's columns.

    Attributes:
        rows: the sample, at most `SAMPLE` readable rows.
        kinds: column -> what most of its filled cells hold. A CSV's cells are text: numbers and printed lists count as
            what they stand for.
        wanted: what the user says columns are.
    """

    rows: Sequence[Mapping[str, Any]]
    kinds: Mapping[str, Kind]
    wanted: Wanted

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], wanted: Wanted | None = None) -> Columns:
        """The columns of a sample.

        Raises:
            DiagError: the user names a column that no row has.
        """
        names = dict.fromkeys(str(name) for row in rows for name in row)
        for role, given in (wanted or {}).items():
            for name in given or ():
                if rows and name not in names:
                    raise DiagError(
                        "no such column", where=f"data.columns.{role}", got=name, usage=True,
                        expected=f"one of {', '.join(names)}", hint=did_you_mean(name, names),
                    )  # fmt: skip
        return cls(rows, {name: _kind(row.get(name) for row in rows) for name in names}, wanted or {})

    @cached_property
    def _filled_columns(self) -> dict[str, str]:
        """Simple name -> column; the first of several."""
        return {simple(column): column for column in reversed(list(self.kinds)) if self.kinds[column] != "empty"}

    def find(self, *names: str, kinds: Iterable[Kind] = ()) -> str | None:
        """The first column of these (simple) names that holds something, of one of `kinds` if given."""
        for name in names:
            column = self._filled_columns.get(name)
            if column is not None and (not kinds or self.kinds[column] in kinds):
                return column
        return None

    def named(self, *names: str) -> str | None:
        """The first column of these (simple) names, whether or not it holds anything."""
        return next((column for name in names for column in self.kinds if simple(column) == name), None)

    def of_role(self, role: str, *names: str, kinds: Iterable[Kind] = ()) -> str | None:
        """The column that the user gave a role, else the first of `names`; None where there is none, or none wanted."""
        if role in self.wanted:
            given = self.wanted[role]
            return given[0] if given else None
        return self.find(*names, kinds=kinds)

    def repeats(self, name: str, other: str) -> bool:
        """Whether a column says nothing that another does not say already, in every row of the sample."""
        return all(str(row.get(name) or "").strip() in str(row.get(other) or "") for row in self.rows)

    def values(self, column: str) -> list[Any]:
        """The filled cells of a column in the sample."""
        return [row[column] for row in self.rows if filled(row.get(column))]

    def says(self) -> str:
        """The columns, for a message."""
        return ", ".join(self.kinds) or "nothing"


def filled(value: Any) -> bool:
    """Whether a cell holds something: no null, NaN, empty text or list."""
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and not (isinstance(value, (str, list, tuple, Mapping)) and not len(value))


def _kind(values: Iterable[Any]) -> Kind:
    counts = Counter(_kind_of(value) for value in values if filled(value))
    return counts.most_common(1)[0][0] if counts else "empty"


def _kind_of(value: Any) -> Kind:
    value = decoded_chat(value)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        found = printed(value)
        value = value if found is None else found
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return "text" if value.strip() else "empty"
        return "number"
    if isinstance(value, (bool, int, float)):
        return "number"
    if isinstance(value, Mapping):
        return "object"
    if is_chat(value):
        return "messages"
    if isinstance(value, (list, tuple)):
        if all(isinstance(entry, str) for entry in value):
            return "texts"
        return "objects" if all(isinstance(entry, Mapping) for entry in value) else "list"
    return "list"
