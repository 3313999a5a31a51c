"""A question under another name than `prompt`: Intel's orca pairs, argilla's, text-to-SQL sets with a context."""

from __future__ import annotations

from dpo_diag.rows.cells import MESSAGE_LISTS
from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm
from dpo_diag.rows.prompt_columns import TRL_PROMPT
from dpo_diag.rows.sides import sided

TITLE = "a question and two answers"


def match(columns: Columns) -> Reading | None:
    """A column that asks, beside chosen and rejected."""
    return sided(columns, "question", TITLE, lambda prompt: prompt.name not in ("", *TRL_PROMPT, *MESSAGE_LISTS))


FORMS.add(
    "question",
    RowForm(
        title=TITLE,
        columns="question, query, input, context, ... or what data.columns.prompt names; chosen, rejected; system",
        pair="prompt = the question, then input or context, as the user's turn",
        match=match,
        example={"system": "Be brief.", "question": "Where is Rome?", "chosen": "In Italy.", "rejected": "In Chile."},
        order=60,
    ),
)
