"""A frame as the cells of an HTML table: what is behind each plot, so that nothing is only to be seen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from dpo_diag.report.text import clean
from dpo_diag.text import number

MAX_ROWS = 200
SHORT = 32
"""Cells up to so many characters stay on one line; the table scrolls sideways instead."""


class Cell(NamedTuple):
    """A cell's text, its class in the style sheet (num, short or none), and whether a head is a run's own words."""

    text: str
    style: str
    own: bool = False


@dataclass(frozen=True)
class Table:
    """A table as the macros of templates/macros.html draw it; `left_out` rows are not shown."""

    caption: str
    header: list[Cell]
    rows: list[list[Cell]]
    left_out: int = 0


def table(
    frame: pd.DataFrame,
    caption: str,
    *,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    names: Mapping[str, str] | None = None,
    max_rows: int = MAX_ROWS,
    own: Collection[str] = (),
) -> Table:
    """The frame's columns in their order, numbers right-aligned; rows beyond `max_rows` are left out and counted.

    Args:
        formats: column -> how its values are printed; default `number` for numbers, `clean` for text.
        names: column -> what its head says.
        own: columns whose heads are a run's own words: no language changes them.
    """
    formats, names = formats or {}, names or {}
    columns = [str(c) for c in frame.columns]
    numeric = [c in formats or pd.api.types.is_numeric_dtype(frame[c].dtype) for c in columns]
    write = [formats.get(c, number if is_number else clean) for c, is_number in zip(columns, numeric, strict=True)]
    rows = []
    for record in frame.head(max_rows).itertuples(index=False, name=None):
        texts = [function(value) for function, value in zip(write, record, strict=True)]
        rows.append([
            Cell(text, "num" if is_number else "short" if len(text) <= SHORT else "")
            for text, is_number in zip(texts, numeric, strict=True)
        ])  # fmt: skip
    header = [
        Cell(names.get(c, c), "num" if is_number else "", c in own)
        for c, is_number in zip(columns, numeric, strict=True)
    ]
    return Table(caption, header, rows, len(frame) - len(rows))
