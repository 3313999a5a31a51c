"""Rows of one answer (SFT): conversations, a prompt and its completion, whole texts. `trainer=sft` trains them; where a
pair is wanted they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.cells import MESSAGE_LISTS
from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm, refusal
from dpo_diag.rows.pair import field_of, template_options
from dpo_diag.rows.parts import Parts, answer, decoded_chat, last_answer
from dpo_diag.rows.prompt_columns import ASKED, SYSTEM_NAMES, find_prompt
from dpo_diag.rows.sides import ambiguous

FORM, TITLE = "single", "one answer a row (SFT)"
_ANSWERS = ("completion", "response", "output", "answer")
_KINDS = ("text", "messages", "object", "number")
_OF_PAIRS = frozenset({"chosen", "rejected", "rejected_response", "rejected_messages"})
"""Columns of rows that are pairs: in a file of single answers such a row is refused, not read by half."""


def match(columns: Columns) -> Reading | None:
    """Something that asks or answers, and nothing chosen or rejected but by the user's word."""
    found = columns.of_role("chosen", *_ANSWERS, *MESSAGE_LISTS, "text", "input", "prompt", *ASKED)
    if found is None or ("chosen" not in columns.wanted and columns.find("chosen", "rejected")):
        return None
    alone = _alone(columns)
    trains = "; dpo-train trainer=sft trains on them as they are" if alone is not None else ""
    reading = refusal(
        columns, FORM, TITLE, "one answer a row or none, no pairs", f"the columns are {columns.says()}",
        "preference pairs have a chosen and a rejected answer to each prompt; "
        f"data.columns.chosen=NAME data.columns.rejected=NAME if two columns hold them{trains}",
    )  # fmt: skip
    return replace(reading, alone=alone and replace(alone, single=True))


def _alone(columns: Columns) -> Reading | None:
    """How the rows are read for supervised training; None where nothing says what the answer is."""
    named = {"prompt", "chosen"} & columns.wanted.keys()
    answers = columns.of_role("chosen", *_ANSWERS, kinds=_KINDS)
    talk = None if named else columns.find(*MESSAGE_LISTS, kinds=("messages",))
    if talk is not None and (answers is None or any(map(_is_answered, columns.values(talk)))):
        return _conversation(columns, talk)
    prompt = find_prompt(columns)
    if answers is not None and prompt.names and answers not in prompt.names:
        if prompt.rivals:
            return ambiguous(columns, FORM, TITLE, prompt)

        def parts(row: Mapping[str, Any]) -> Parts:
            return replace(prompt.parts(row, field_of(row, answers), None, system_wins=True), alone=True)

        says = f"{prompt.says()}, completion = {answers}"
        return Reading(FORM, TITLE, says, frozenset({*prompt.columns, answers}), parts, empty=_OF_PAIRS)
    text = columns.find("text", kinds=("text", "messages"))
    if answers is not None or text is None or prompt.names:
        return None

    def whole(row: Mapping[str, Any]) -> Parts:
        return Parts(field_of(row, text), None, alone=True)

    return Reading(FORM, TITLE, f"{text}, the whole of it", frozenset({text}), whole, empty=_OF_PAIRS)


def _is_answered(value: Any) -> bool:
    """Whether the assistant has the last word in a cell of messages."""
    try:
        last_answer(answer(decoded_chat(value), "")[0], "")
    except BadRow:  # a row that cannot be read decides nothing
        return False
    return True


def _conversation(columns: Columns, name: str) -> Reading:
    system = columns.of_role("system", *SYSTEM_NAMES)

    def parts(row: Mapping[str, Any]) -> Parts:
        turns, tools = answer(field_of(row, name), name)
        asked, answered = last_answer(turns, name)
        return Parts(
            answered, None, asked, chat=True, system=row.get(system) if system else None, system_wins=True, alone=True,
            extra=template_options({"tools": tools}),
        )  # fmt: skip

    first = f"{system} as the system's turn, " if system else ""
    says = f"{first}{name}, prompt = what comes before the last answer"
    return Reading(FORM, TITLE, says, frozenset({name, *([system] if system else [])}), parts, empty=_OF_PAIRS)


FORMS.add(
    FORM,
    RowForm(
        title=TITLE,
        columns="messages or conversations alone; prompt and completion; instruction, input and output; text; system",
        pair="refused where a pair is wanted; `trainer=sft` trains on the (last) answer, of text on the whole",
        match=match,
        example={"instruction": "Where is Rome?", "input": "", "output": "In Italy."},
        order=90,
    ),
)
