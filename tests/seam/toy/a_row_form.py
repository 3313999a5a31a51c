"""A form of rows: what somebody asked, and two replies in one text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm
from dpo_diag.rows.parts import Parts


def parts(row: Mapping[str, Any]) -> Parts:
    chosen, _, rejected = row["toy_replies"].partition(" > ")
    return Parts(chosen, rejected, row["toy_asked"], chat=True)


def match(columns: Columns) -> Reading | None:
    if columns.find("toy_replies") is None:
        return None
    return Reading("toy", "the toy's form", "chosen > rejected", frozenset({"toy_asked", "toy_replies"}), parts)


FORMS.add(
    "toy",
    RowForm(
        "the toy's form", "toy_asked, toy_replies", "as they stand", match, {"toy_asked": "Hi", "toy_replies": "a > b"}
    ),
)
