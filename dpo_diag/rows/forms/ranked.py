"""A list of answers with ranks or ratings: Nectar, UltraFeedback, distilabel's generations. Best against worst."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.cells import printed
from dpo_diag.rows.columns import Columns, simple
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


def _entries(value: Any) -> Sequence[Any]:
    """What a list holds, printed or not; [] for anything else."""
    found = printed(value)
    return found if isinstance(found, (list, tuple)) else []


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
    inside = columns.kinds[name] == "objects"
    if inside:
        entries = [entry for value in columns.values(name) for entry in _entries(value) if isinstance(entry, Mapping)]
        keys = {str(key) for entry in entries for key in entry}
        marks = next((key for word in (*_RANKS, *_RATINGS) for key in sorted(keys) if simple(key) == word), "")
        if not any(key in keys for key in TEXT_KEYS):
            return None
    else:
        marks = columns.find(*_RANKS, *_RATINGS, kinds=("list", "texts")) or ""
    if not marks:
        return None
    low_is_good = marks in _RANKS
    prompt = find_prompt(columns).of_a_chat(columns)
    if not prompt.names:
        return None
    if prompt.rivals:
        return ambiguous(columns, "ranked", TITLE, prompt)

    def parts(row: Mapping[str, Any]) -> Parts:
        answers = _entries(field_of(row, name))
        found: Sequence[Any] = [entry.get(marks) if isinstance(entry, Mapping) else None for entry in answers]
        if not inside:
            found = _entries(field_of(row, marks))
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
