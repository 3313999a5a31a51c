"""LLaMA-Factory's Alpaca ranking format: an instruction, its input, two answers (the older one lists them)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.cells import printed
from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm
from dpo_diag.rows.pair import field_of, shorten
from dpo_diag.rows.parts import Parts
from dpo_diag.rows.prompt_columns import find_prompt
from dpo_diag.rows.sides import ambiguous, sided

TITLE = "Alpaca"


INSTRUCTION = ("instruction", "instructions")


def match(columns: Columns) -> Reading | None:
    """An instruction beside chosen and rejected."""
    return sided(columns, "alpaca", TITLE, lambda prompt: prompt.name in INSTRUCTION)


def match_list(columns: Columns) -> Reading | None:
    """An instruction beside a list of two outputs, the better one first."""
    output, prompt = columns.find("output", kinds=("texts",)), find_prompt(columns)
    if output is None or prompt.name not in INSTRUCTION:
        return None
    if prompt.rivals:
        return ambiguous(columns, "alpaca_outputs", TITLE, prompt)

    def parts(row: Mapping[str, Any]) -> Parts:
        answers = printed(field_of(row, output))
        if not isinstance(answers, (list, tuple)) or len(answers) != 2:
            raise BadRow("not two outputs", shorten(answers, 60))
        return prompt.parts(row, *answers)

    says = f"{prompt.says()}, chosen = the first of {output}, rejected = the second"
    return Reading("alpaca_outputs", TITLE, says, frozenset({*prompt.columns, output}), parts)


FORMS.add(
    "alpaca",
    RowForm(
        title=TITLE,
        columns="instruction, input, chosen, rejected; system, history",
        pair="prompt = instruction, then input, as the user's turn",
        match=match,
        example={"instruction": "Translate.", "input": "Ciao", "chosen": "Hello", "rejected": "Ciao"},
        order=50,
    ),
)
FORMS.add(
    "alpaca_outputs",
    RowForm(
        title="Alpaca with two outputs",
        columns="instruction, input, output: [better, worse]",
        pair="prompt as above; chosen = the first output, rejected = the second",
        match=match_list,
        example={"instruction": "Translate.", "input": "Ciao", "output": ["Hello", "Ciao"]},
        order=50,
    ),
)
