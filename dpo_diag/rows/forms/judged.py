"""Two numbered or lettered answers and a column that says which is better: HelpSteer, PKU-SafeRLHF, arenas, SHP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.columns import Columns, simple
from dpo_diag.rows.form import FORMS, Reading, RowForm, refusal
from dpo_diag.rows.pair import field_of, shorten
from dpo_diag.rows.parts import Parts
from dpo_diag.rows.prompt_columns import find_prompt
from dpo_diag.rows.sides import FILLED, NOUNS, ambiguous

TITLE = "two answers and a judgement"
_ENDINGS = (("0", "1"), ("1", "2"), ("a", "b"))
_BASES = (*NOUNS, "human_ref", "candidate")
_SIGNED = ("preference_strength", "overall_preference")
"""HelpSteer2's and 3's: -3 (the first is much better) to 3."""
_NAMED = ("better_response_id", "safer_response_id", "better_response", "winner", "preference", "preferred", "choice",
          "better", "label", "labels", "chosen", "selected", "human_preference", "better_answer")  # fmt: skip
_TIES = ("tie", "both", "neither", "none", "equal", "same", "draw")

Judge = Callable[[Any], int | None]
"""A judgement -> 0 (the first answer is better), 1, or None for a tie; raises ValueError for what it does not know."""


def _two_answers(columns: Columns) -> tuple[str, str, tuple[str, str], str] | None:
    """(first column, second column, their endings, their common name)."""
    for base in _BASES:
        for ends in _ENDINGS:
            for shape in ("{base}_{end}", "{base}{end}"):
                found = [columns.find(shape.format(base=base, end=end), kinds=FILLED) for end in ends]
                if found[0] and found[1]:
                    return found[0], found[1], ends, base
    return None


def _by_sign(value: Any) -> int | None:
    number = float(value)
    return None if number == 0 else int(number > 0)


def _by_name(first: str, second: str, ends: tuple[str, str], base: str) -> Judge:
    names = {
        simple(shape): place
        for place, (column, end) in enumerate(zip((first, second), ends, strict=True))
        for shape in (end, column, f"{base}_{end}", f"model_{end}", f"response_{end}", f"answer_{end}")
    }

    def judge(value: Any) -> int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        word = simple("" if isinstance(value, bool) else str(value))
        if word.removesuffix("_0") in names and word not in names:
            word = word.removesuffix("_0")  # a CSV's 1.0
        if word.split("_")[0] in _TIES:
            return None
        if word not in names:
            raise ValueError(f"{value!r} names neither {first} nor {second}")
        return names[word]

    return judge


def _of_reddit(value: Any) -> int | None:
    """SHP's labels: 1 says that A is better, 0 that B is."""
    return {0.0: 1, 1.0: 0}[float(value)]


def _judges(columns: Columns, first: str, second: str, ends: tuple[str, str], base: str) -> dict[str, Judge]:
    """Columns that may say which answer is better, with how they say it."""
    by_name = _by_name(first, second, ends, base)
    if columns.wanted.get("better"):
        name = str((columns.wanted["better"] or ("",))[0])
        return {name: _by_sign if simple(name) in _SIGNED else by_name}
    if base == "human_ref" and (label := columns.find("labels", "label")):
        return {label: _of_reddit}
    found: dict[str, Judge] = {}
    for names, judge in ((_SIGNED, _by_sign), (_NAMED, by_name)):
        found |= {column: judge for name in names if (column := columns.find(name)) is not None}
    return found


def _fits(judge: Judge, values: list[Any]) -> bool:
    try:
        for value in values:
            judge(value)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def match(columns: Columns) -> Reading | None:
    """Two answers that a number or a letter tells apart, without chosen and rejected."""
    if columns.wanted.get("chosen") or (
        columns.find("chosen", kinds=FILLED) and columns.find("rejected", kinds=FILLED)
    ):
        return None
    answers = _two_answers(columns)
    if answers is None:
        return None
    first, second, _, _ = answers
    by_hand = f"or data.columns.chosen={first} data.columns.rejected={second} if the first is always better"

    def refused(why: str, detail: str, hint: str) -> Reading:
        return refusal(columns, "judged", TITLE, why, detail, hint)

    judges = _judges(columns, *answers)
    if not judges:
        return refused(
            "two answers and no word on which is better", f"{first}, {second}", f"data.columns.better=COLUMN, {by_hand}"
        )
    known = {name: judge for name, judge in judges.items() if _fits(judge, columns.values(name))}
    if len(judges) > 1 and (len(known) > 1 or not known):
        return refused("several columns could say which answer is better", ", ".join(judges),
                       f"data.columns.better={next(iter(judges))}")  # fmt: skip
    if not known:
        name = next(iter(judges))
        seen = ", ".join(dict.fromkeys(shorten(v, 20) for v in columns.values(name)[:20]))
        return refused("the judgement names neither answer", f"{name} is {shorten(seen, 60)}",
                       f"write {first}, {second} or tie into {name}, {by_hand}")  # fmt: skip
    better, judge = next(iter(known.items()))
    prompt = find_prompt(columns).of_a_chat(columns)
    if prompt.rivals:
        return ambiguous(columns, "judged", TITLE, prompt)

    def parts(row: Mapping[str, Any]) -> Parts:
        try:
            place = judge(field_of(row, better))
        except (ValueError, TypeError, KeyError):
            raise BadRow("the judgement names neither answer", f"{better} is {shorten(row[better], 40)}") from None
        if place is None:
            raise BadRow("a tie: neither answer is better", f"{better} is {shorten(row[better], 40)}")
        found = [field_of(row, name) for name in (first, second)]
        return prompt.parts(row, found[place], found[1 - place])

    says = f"{prompt.says()}, chosen = the one of {first} and {second} that {better} prefers"
    return Reading("judged", TITLE, says, frozenset({*prompt.columns, first, second, better}), parts)


FORMS.add(
    "judged",
    RowForm(
        title=TITLE,
        columns="prompt, response_1, response_2 (_0, _1, _a, _b); preference_strength, better_response_id, winner, ...",
        pair="chosen = what the judgement names; ties are refused; data.columns.better names one of several",
        match=match,
        example={
            "prompt": "Where is Rome?",
            "response_0": "In Chile.",
            "response_1": "In Italy.",
            "better_response_id": 1,
        },
        order=25,
    ),
)
