"""A list of answers with ranks or ratings: Nectar, UltraFeedback, distilabel's generations. Best against worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.cells import printed
from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm
from dpo_diag.rows.pair import field_of
from dpo_diag.rows.parts import TEXT_KEYS, Parts
from dpo_diag.rows.prompt_columns import find_prompt
from dpo_diag.rows.sides import ambiguous

TITLE = "ranked answers"
_LISTS = ("answers", "completions", "responses", "generations", "outputs", "candidates")
_RANKS = ("rank", "ranks", "ranking")
_RATINGS = (
    "overall_score",
    "rating",
    "ratings",
    "score",
    "scores",
    "overall_rating",
    "fine_grained_score",
    "reward",
    "rewards",
)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def best_and_worst(answers: Sequence[Any], marks: Sequence[Any], low_is_good: bool) -> tuple[Any, Any]:
    """The first answer with the best mark and the last with the worst; answers without a mark do not count.

    Raises:
        BadRow: fewer than two marks, or all alike.
    """
    if len(answers) != len(marks):
        raise BadRow("answers and marks differ in number", f"{len(answers)} answers, {len(marks)} marks")
    marked = [(number, place) for place, mark in enumerate(marks) if not math.isnan(number := _number(mark))]
    if len({number for number, _ in marked}) < 2:
        raise BadRow("no answer is better than another", f"{len(marked)} of {len(answers)} are marked")
    ordered = sorted(marked, key=lambda entry: entry[0] if low_is_good else -entry[0])
    return answers[ordered[0][1]], answers[ordered[-1][1]]


def match(columns: Columns) -> Reading | None:
    """A list of answers, whose entries or a list beside it hold ranks or ratings."""
    name = columns.find(*_LISTS, kinds=("objects", "texts"))
    if name is None:
        return None
    marks = ""
    if columns.kinds[name] == "objects":
        keys = {str(key) for value in columns.values(name) for entry in printed(value) or () for key in entry}
        marks = next((key for key in (*_RANKS, *_RATINGS) if key in {k.replace("-", "_") for k in keys}), "")
        marks = next((key for key in keys if key.replace("-", "_") == marks), "")
        text = next((key for key in TEXT_KEYS if key in keys), None)
        if not marks or text is None:
            return None
    else:
        marks = columns.find(*_RANKS, *_RATINGS, kinds=("list", "texts")) or ""
        if not marks:
            return None
    low_is_good = marks in _RANKS
    inside = columns.kinds[name] == "objects"
    prompt = find_prompt(columns).of_a_chat(columns)
    if not prompt.names:
        return None
    if prompt.rivals:
        return ambiguous(columns, "ranked", TITLE, prompt)

    def parts(row: Mapping[str, Any]) -> Parts:
        answers = printed(field_of(row, name))
        found = [entry.get(marks) for entry in answers] if inside else printed(field_of(row, marks))
        if not isinstance(answers, (list, tuple)) or not isinstance(found, (list, tuple)):
            raise BadRow("wrong type", f"{name} is no list of answers")
        chosen, rejected = best_and_worst(answers, found, low_is_good)
        return prompt.parts(row, chosen, rejected)

    says = f"{prompt.says()}, chosen = the answer in {name} of the best {marks}, rejected = of the worst"
    columns_read = {*prompt.columns, name, *([] if inside else [marks])}
    return Reading("ranked", TITLE, says, frozenset(columns_read), parts)


FORMS.add(
    "ranked",
    RowForm(
        title=TITLE,
        columns="prompt (or instruction, ...), answers: [{answer, rank}] or completions, or generations beside ratings",
        pair="chosen = the best mark, rejected = the worst; the answers between them are not used",
        match=match,
        example={
            "prompt": "Where is Rome?",
            "answers": [{"answer": "In Italy.", "rank": 1}, {"answer": "In Chile.", "rank": 2}],
        },
        order=70,
    ),
)
