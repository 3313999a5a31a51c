"""Columns that hold the chosen and the rejected answer under any of their names, and the forms that have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import Reading, refusal
from dpo_diag.rows.pair import Turns, field_of
from dpo_diag.rows.parts import Parts
from dpo_diag.rows.prompt_columns import Prompt, find_prompt

_WORDS = (("chosen", "rejected"), ("preferred", "dispreferred"), ("preferred", "rejected"), ("accepted", "rejected"),
          ("winner", "loser"), ("winning", "losing"), ("win", "lose"), ("better", "worse"), ("best", "worst"),
          ("good", "bad"), ("correct", "incorrect"))  # fmt: skip
NOUNS = ("response", "answer", "output", "completion", "text", "messages", "conversation", "conversations", "summary",
         "reply", "generation", "query", "sql")  # fmt: skip
FILLED = ("text", "messages", "object", "texts", "objects")


def find_sides(columns: Columns) -> list[tuple[str, str]]:
    """(chosen, rejected) columns: the user's, else `chosen` and `rejected`, else all pairs of names that mean them."""
    given = [columns.of_role(side, side) for side in ("chosen", "rejected")]
    if given[0] and given[1]:
        return [(given[0], given[1])]
    found: dict[tuple[str, str], None] = {}
    for good, bad in _WORDS:
        for noun in ("", *NOUNS):
            for shape in ("{side}_{noun}", "{noun}_{side}"):
                names = [shape.format(side=word, noun=noun).strip("_") for word in (good, bad)]
                first, second = (columns.find(name, kinds=FILLED) for name in names)
                if first and second:
                    found[first, second] = None
    if not found:
        # ms-swift, H2O LLM Studio: the answer under its own name, the rejected one beside it. Stack Exchange: j and k.
        shapes = [shape.format(noun) for noun in NOUNS for shape in ("rejected_{}", "{}_rejected")]
        for firsts, seconds in ((NOUNS[:4], ("rejected", *shapes)), (("response_j",), ("response_k",))):
            first, second = columns.find(*firsts, kinds=FILLED), columns.find(*seconds, kinds=FILLED)
            if first and second:
                return [(first, second)]
    return list(found)


def ambiguous(columns: Columns, form: str, title: str, prompt: Prompt) -> Reading:
    """The refusal of a file with several columns that could be the prompt."""
    names = [*prompt.names, *prompt.rivals]
    hint = f"data.columns.prompt={names[0]}, or data.columns.prompt=[{','.join(names)}] for one under the other"
    return refusal(columns, form, title, "several columns could be the prompt", ", ".join(names), hint)


def sided(
    columns: Columns, form: str, title: str, wants: Callable[[Prompt], bool], system_wins: bool = False,
    check: Callable[[Turns], None] | None = None,
) -> Reading | None:  # fmt: skip
    """The reading of a form with a chosen and a rejected column, if its prompt is where `wants` says; else None."""
    sides, prompt = find_sides(columns), find_prompt(columns)
    if not sides or not wants(prompt):
        return None
    if prompt.rivals:
        return ambiguous(columns, form, title, prompt)
    if len(sides) > 1:
        names = "; ".join(" and ".join(pair) for pair in sides)
        hint = f"data.columns.chosen={sides[0][0]} data.columns.rejected={sides[0][1]}"
        return refusal(columns, form, title, "several columns could be chosen and rejected", names, hint)
    chosen, rejected = sides[0]

    def parts(row: Mapping[str, Any]) -> Parts:
        return prompt.parts(row, field_of(row, chosen), field_of(row, rejected), system_wins)

    renamed = [f"{side} = {name}" for side, name in (("chosen", chosen), ("rejected", rejected)) if name != side]
    says = ", ".join([prompt.says(), *renamed] if renamed else [prompt.says(), "chosen, rejected"])
    return Reading(form, title, says, frozenset({*prompt.columns, chosen, rejected}), parts, check=check)
