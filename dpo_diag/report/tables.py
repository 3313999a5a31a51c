"""A frame as an HTML table: what stands behind each plot, so that nothing is only to be seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from dpo_diag.report.numbers import number
from dpo_diag.report.text import clean

MAX_ROWS = 200
SHORT = 32
"""Cells up to so many characters stay on one line; the table scrolls sideways instead."""


def table(
    frame: pd.DataFrame,
    caption: str,
    *,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    names: Mapping[str, str] | None = None,
    max_rows: int = MAX_ROWS,
) -> Markup:
    """The frame's columns as they stand, numbers right-aligned; rows beyond `max_rows` are left out and counted."""
    formats, names = formats or {}, names or {}
    numeric = {c: pd.api.types.is_numeric_dtype(frame[c].dtype) or c in formats for c in frame.columns}
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(
            Markup(' class="num"') if numeric[c] else "", escape(clean(names.get(str(c), str(c))))
        )
        for c in frame.columns
    )
    rows = []
    for record in frame.head(max_rows).itertuples(index=False, name=None):
        cells = []
        for column, value in zip(frame.columns, record, strict=True):
            text = formats[column](value) if column in formats else number(value) if numeric[column] else clean(value)
            cells.append(
                Markup("<td{}>{}</td>").format(
                    Markup(' class="num"' if numeric[column] else ' class="short"' if len(text) <= SHORT else ""),
                    escape(text),
                )
            )
        rows.append(Markup("<tr>{}</tr>").format(Markup("").join(cells)))
    left_out = len(frame) - len(rows)
    note = Markup('<p class="small">{} further rows are in the records.</p>').format(left_out) if left_out > 0 else ""
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{0}"><table><caption>{0}</caption>'
        "<thead><tr>{1}</tr></thead><tbody>{2}</tbody></table></div>{3}"
    ).format(clean(caption), head, Markup("").join(rows), note)


def behind(frame: pd.DataFrame, caption: str, **options: Any) -> Markup:
    """The table, folded away under its plot."""
    return Markup('<details class="numbers"><summary>{}</summary>{}</details>').format(
        f"The numbers: {clean(caption)}", table(frame, caption, **options)
    )


def figure(plot: Markup, caption: str, numbers: Markup = Markup("")) -> Markup:  # noqa: B008 - Markup is immutable
    """A plot with what it says beneath, and its numbers."""
    return Markup("<figure>{}<figcaption>{}</figcaption>{}</figure>").format(plot, clean(caption), numbers)
