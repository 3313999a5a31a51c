"""TRL's preference formats: explicit or implicit prompt, text or messages; hh-rlhf's texts that share a prompt."""

from __future__ import annotations

from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm
from dpo_diag.rows.prompt_columns import TRL_PROMPT
from dpo_diag.rows.sides import sided

TITLE = "TRL's preference pairs"


def match(columns: Columns) -> Reading | None:
    """Chosen and rejected, with a column `prompt` or with none that could hold one."""
    return sided(columns, "trl", TITLE, lambda prompt: prompt.name in ("", *TRL_PROMPT))


FORMS.add(
    "trl",
    RowForm(
        title=TITLE,
        columns="chosen, rejected; prompt, unless both begin with it; system",
        pair="as they stand, text or messages; with a system text they are messages",
        match=match,
        example={"prompt": "Where is Rome?", "chosen": " In Italy.", "rejected": " In Chile."},
        order=40,
    ),
)
