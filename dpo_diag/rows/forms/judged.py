"""Two numbered or lettered answers and a column that says which is better: HelpSteer, PKU-SafeRLHF, arenas, SHP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.columns import Columns, filled, simple
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
_NAMED = ("better_response_id", "safer_response_id", "better_response", "better_answer", "winner", "preference",
          "preferred", "choice", "better", "chosen", "selected", "human_preference")  # fmt: skip
_LABELS = ("label", "labels")
_SCORES = ("score_{end}", "{base}_{end}_score", "{base}_score_{end}", "rating_{end}", "{base}_{end}_rating")
_TIES = ("tie", "both", "neither", "none", "equal", "same", "draw")

Verdict = Callable[[Any], int | None]
"""A judgement -> 0 (the first answer is better), 1, or None for a tie; raises ValueError for what it does not know."""


@dataclass(frozen=True)
class Judge:
    """Which of two answers is better: the columns that say it, and how they do."""

    columns: tuple[str, ...]
    verdict: Verdict

    @property
    def name(self) -> str:
        return " and ".join(self.columns)

    def of(self, row: Mapping[str, Any]) -> int | None:
        """0, 1, or None for a tie.

        Raises:
            BadRow: the row lacks the judgement, or it names neither answer.
        """
        values = [field_of(row, name) for name in self.columns]
        try:
            return self.verdict(values[0] if len(values) == 1 else values)
        except (ValueError, TypeError, KeyError):
            shown = ", ".join(shorten(value, 20) for value in values)
            raise BadRow("the judgement names neither answer", f"{self.name} is {shown}") from None

    def fits(self, columns: Columns) -> bool:
        """Whether it understands every row of the sample that has a judgement."""
        try:
            for row in columns.rows:
                if all(filled(row.get(name)) for name in self.columns):
                    self.of(row)
        except BadRow:
            return False
        return True


@dataclass(frozen=True)
class Two:
    """Two answers: their columns, the endings that tell them apart, their common name."""

    first: str
    second: str
    ends: tuple[str, str]
    base: str


def _two_answers(columns: Columns) -> Two | None:
    for base in _BASES:
        for ends in _ENDINGS:
            for shape in ("{base}_{end}", "{base}{end}"):
                first, second = (columns.find(shape.format(base=base, end=end), kinds=FILLED) for end in ends)
                if first and second:
                    return Two(first, second, ends, base)
    return None


def _by_sign(value: Any) -> int | None:
    number = float(value)
    return None if number == 0 else int(number > 0)


def _by_score(values: Any) -> int | None:
    return _by_sign(float(values[1]) - float(values[0]))


def _by_name(two: Two, numbers: bool = True) -> Verdict:
    """A judgement that names an answer: its ending, its column, `model_a`; a bare number only with `numbers`."""
    names = {
        simple(shape): place
        for place, (column, end) in enumerate(zip((two.first, two.second), two.ends, strict=True))
        for shape in (end, column, f"{two.base}_{end}", f"model_{end}", f"response_{end}", f"answer_{end}")
    }

    def verdict(value: Any) -> int | None:
        text = str(value).strip().removesuffix(".0")  # what a CSV makes of a column with gaps
        if isinstance(value, bool) or text.startswith("-") or (text.isdigit() and not numbers):
            raise ValueError(text)
        word = simple(text)
        return None if word.split("_")[0] in _TIES else names[word]

    return verdict


def _of_reddit(value: Any) -> int | None:
    """SHP's labels: 1 says that A is better, 0 that B is."""
    return {0.0: 1, 1.0: 0}[float(value)]


def _judges(columns: Columns, two: Two) -> list[Judge]:
    """Columns that may say which answer is better, with how they say it."""
    given = columns.wanted.get("better")
    if given:
        return [Judge(given, _by_sign if simple(given[0]) in _SIGNED else _by_name(two))]
    if two.base == "human_ref" and (label := columns.find(*_LABELS)):
        return [Judge((label,), _of_reddit)]
    kinds = ((_SIGNED, _by_sign), (_NAMED, _by_name(two)), (_LABELS, _by_name(two, numbers=False)))
    found = [Judge((c,), verdict) for names, verdict in kinds for name in names if (c := columns.find(name))]
    for shape in _SCORES if not found else ():
        first, second = (columns.find(shape.format(end=end, base=two.base), kinds=("number",)) for end in two.ends)
        if first and second:
            found.append(Judge((first, second), _by_score))
    return found


def _refused(columns: Columns, two: Two, judges: list[Judge], known: list[Judge]) -> Reading | None:
    """Why it is open which answer is better; None where one judge says it."""
    by_hand = f"or data.columns.chosen={two.first} data.columns.rejected={two.second} if the first is always better"
    if not judges:
        why, detail = "two answers and no word on which is better", f"{two.first}, {two.second}"
        hint = f"data.columns.better=COLUMN, {by_hand}"
    elif len(judges) > 1 and len(known) != 1:
        why, detail = "several columns could say which answer is better", ", ".join(judge.name for judge in judges)
        hint = f"data.columns.better={judges[0].columns[0]}"
    elif not known:
        name = judges[0].columns[0]
        seen = ", ".join(dict.fromkeys(shorten(value, 20) for value in columns.values(name)[:20]))
        why, detail = "the judgement names neither answer", f"{name} is {shorten(seen, 60)}"
        hint = f"write {two.first}, {two.second} or tie into {name}, {by_hand}"
    else:
        return None
    return refusal(columns, "judged", TITLE, why, detail, hint)


def match(columns: Columns) -> Reading | None:
    """Two answers that a number or a letter tells apart, without chosen and rejected."""
    sides = [columns.find(name, kinds=FILLED) for name in ("chosen", "rejected")]
    two = None if columns.wanted.get("chosen") or all(sides) else _two_answers(columns)
    if two is None:
        return None
    judges = _judges(columns, two)
    known = [judge for judge in judges if judge.fits(columns)]
    if (refused := _refused(columns, two, judges, known)) is not None:
        return refused
    judge, prompt = known[0], find_prompt(columns).of_a_chat(columns)
    if prompt.rivals:
        return ambiguous(columns, "judged", TITLE, prompt)

    def parts(row: Mapping[str, Any]) -> Parts:
        better = judge.of(row)
        if better is None:
            raise BadRow("a tie: neither answer is better", f"{judge.name} is {shorten(row[judge.columns[0]], 40)}")
        answers = [field_of(row, name) for name in (two.first, two.second)]
        return prompt.parts(row, answers[better], answers[1 - better])

    verb = "prefers" if len(judge.columns) == 1 else "prefer"
    says = f"{prompt.says()}, chosen = the one of {two.first} and {two.second} that {judge.name} {verb}"
    return Reading("judged", TITLE, says, frozenset({*prompt.columns, two.first, two.second, *judge.columns}), parts)


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
