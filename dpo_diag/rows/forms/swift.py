"""ms-swift's formats: a whole conversation whose last turn is chosen, and what was rejected in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm
from dpo_diag.rows.pair import field_of
from dpo_diag.rows.parts import Parts, answer, last_answer
from dpo_diag.rows.prompt_columns import SYSTEM_NAMES

TITLE = "ms-swift"


def match(columns: Columns) -> Reading | None:
    """Messages without a chosen column, beside rejected_response or rejected_messages."""
    whole = columns.find("messages", "conversations", kinds=("messages",))
    rejected = columns.find("rejected_messages", "rejected_conversations", "rejected_response", "rejected")
    if whole is None or rejected is None or columns.find("chosen", "chosen_messages", "chosen_response"):
        return None
    system = columns.of_role("system", *SYSTEM_NAMES)

    def parts(row: Mapping[str, Any]) -> Parts:
        turns, _ = answer(field_of(row, whole), whole)
        other, _ = answer(field_of(row, rejected), rejected)
        asked, answered = last_answer(turns, whole)
        # A response may be several turns long (calls and their answers); what is rejected stands for all of them.
        alike = isinstance(other, str) or other[0]["role"] == "assistant"
        prompt, chosen = (asked, answered) if alike else (None, [*asked, *answered])
        found = Parts(chosen, other, prompt, chat=True, system=row.get(system) if system else None)
        if isinstance(other, str):
            found.rejected = [{"role": "assistant", "content": other}]
        return found

    says = f"prompt = {whole} up to the last question, chosen = its last answer, rejected = {rejected}"
    return Reading("swift", TITLE, says, frozenset({whole, rejected, *([system] if system else [])}), parts)


FORMS.add(
    "swift",
    RowForm(
        title=TITLE,
        columns="messages, rejected_response or rejected_messages; system, tools",
        pair="chosen = the last answer in messages, prompt = what comes before it",
        match=match,
        example={
            "messages": [{"role": "user", "content": "Where is Rome?"}, {"role": "assistant", "content": "In Italy."}],
            "rejected_response": "In Chile.",
        },
        order=20,
    ),
)
