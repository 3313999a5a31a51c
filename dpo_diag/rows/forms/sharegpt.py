"""A conversation beside its two answers: LLaMA-Factory's ShareGPT ranking format, Axolotl's chat_template."""

from __future__ import annotations

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.cells import MESSAGE_LISTS
from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm
from dpo_diag.rows.pair import Turns
from dpo_diag.rows.sides import sided

TITLE = "ShareGPT"
_MAY_FOLLOW = {"user": {"assistant"}, "assistant": {"user", "tool"}, "tool": {"tool", "assistant"}}


def check_turns(prompt: Turns) -> None:
    """After an optional system turn the user speaks first, the assistant answers, tools answer the assistant's calls
    (several in a row, one a call), and the user or a tool has the last word. LLaMA-Factory drops other rows, too.

    Raises:
        BadRow: they do not.
    """
    turns = prompt[1:] if prompt and prompt[0]["role"] in ("system", "developer") else prompt
    if not turns:
        raise BadRow("empty prompt", "no turn of the user")
    before = "assistant"
    for i, message in enumerate(turns):
        role = message["role"]
        if role not in _MAY_FOLLOW[before] or (i == 0 and role != "user"):
            raise BadRow("turns do not alternate", f"turn {i + 1} is the {role}'s")
        before = role
    if before == "assistant":
        raise BadRow("the prompt does not end with the user's turn", f"{len(turns)} turns")


def match(columns: Columns) -> Reading | None:
    """A conversation that ends with the user's turn, beside chosen and rejected."""
    return sided(
        columns, "sharegpt", TITLE, lambda prompt: prompt.name in MESSAGE_LISTS, system_wins=True, check=check_turns
    )


FORMS.add(
    "sharegpt",
    RowForm(
        title=TITLE,
        columns="conversations (or messages), chosen, rejected; system, tools",
        pair="prompt = the conversation, whose turns alternate; a system column replaces its system turn",
        match=match,
        example={
            "conversations": [{"from": "human", "value": "Where is Rome?"}],
            "chosen": {"from": "gpt", "value": "In Italy."},
            "rejected": {"from": "gpt", "value": "In Chile."},
        },
        order=30,
    ),
)
