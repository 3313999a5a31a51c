"""What the checkpoints wrote for the fixed prompts, as cards to filter: regressions first, every answer against the
baseline's. Reads the document of `dpo_diag.outputs.compare`, which orders and judges; nothing is computed again here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpo_diag.outputs.answers import POLICY, Checkpoint
from dpo_diag.outputs.diff import Piece, word_diff
from dpo_diag.outputs.phrases import held
from dpo_diag.outputs.selection import standing
from dpo_diag.report.text import clean, one_line
from dpo_diag.text import plural, records

BUDGET = 2_400_000
"""Characters of answers on a page: what 200 prompts x 20 checkpoints may take of the 5 MB that a page may weigh."""
OVERHEAD, ROOM = 300, 1_400_000
"""Characters of markup around one answer, and what all of it may take."""
LIMITS = (2_000, 1_200, 800, 500, 350, 250, 160, 100)
OPEN = 3
"""Prompts whose answers are unfolded when the page opens."""
LABELS = {
    "regression": "regressions: right → wrong",
    "gain": "gains: wrong → right",
    "both_wrong": "both wrong",
    "both_right": "both right",
    "unjudged": "not judged",
}
"""Standing -> what the filter calls it."""
SHORT = {"regression": "right → wrong", "gain": "wrong → right", "both_wrong": "both wrong", "both_right": "both right"}
"""Standing -> what a card calls it."""


@dataclass(frozen=True)
class Answer:
    """One text and the checkpoints that wrote it, as pieces against the baseline's; no piece for an empty one."""

    at: str
    verdict: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Card:
    """One prompt with its answers.

    Attributes:
        standing, changed: what the filters ask: a key of LABELS; "yes", "no" or "" where one answer is missing.
        in_tags, in_phrases: places in the lists of the filters, joined by blanks.
        rank: what became of the answer, in words; marks: right or wrong, checkpoint by checkpoint.
    """

    standing: str
    changed: str
    in_tags: str
    in_phrases: str
    rank: str
    title: str
    text: str
    tags: str
    reference: str
    marks: str
    is_open: bool
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Choice:
    """One value of a filter, what it is called, and how many prompts have it."""

    value: str
    label: str
    n: int


@dataclass(frozen=True)
class Prompts:
    """What the page shows of all prompts: the cards, the values of each filter, and a summary in words."""

    cards: tuple[Card, ...]
    standings: tuple[Choice, ...]
    changed: tuple[Choice, ...]
    tags: tuple[Choice, ...]
    phrases: tuple[Choice, ...]
    against: str
    summary: str


def prompts(comparison: Mapping[str, Any], phrases: Sequence[Mapping[str, Any]] = ()) -> Prompts:
    """Every prompt that the page has room for, in the comparison's reading order; the first few are open.

    Args:
        comparison: the document of `dpo_diag.outputs.compare`.
        phrases: rows of its phrases that can be asked for.
    """
    entries = list(comparison["prompts"])
    limit = text_limit([a["text"] for e in entries for a in e["answers"]])
    tags = [t for t, _ in Counter(t for e in entries for t in e["tags"] or [] if "=" not in t).most_common()]
    grown = [str(row["phrase"]) for row in phrases]
    shared = shared_beginning([_prompt_text(entry) for entry in entries])
    cards: list[Card] = []
    size = 0
    for entry in entries:
        size += sum(2 * min(len(a["text"]), limit) + OVERHEAD for a in entry["answers"])
        if size > BUDGET + ROOM:
            break
        places = [tags.index(t) for t in entry["tags"] or [] if t in tags]
        cards.append(_card(entry, comparison, limit, shared, places, grown, len(cards) < OPEN))
    return Prompts(
        tuple(cards),
        _choices(LABELS, (c.standing for c in cards)) if any(c.standing != "unjudged" for c in cards) else (),
        _choices({"yes": "changed", "no": "same"}, (c.changed for c in cards)),
        _choices({str(i): tag for i, tag in enumerate(tags)}, (i for c in cards for i in c.in_tags.split())),
        _choices({str(i): words for i, words in enumerate(grown)}, (i for c in cards for i in c.in_phrases.split())),
        comparison["baseline"],
        _summary(comparison, len(entries) - len(cards), limit),
    )


OF_TWO = {"lost": "regression", "won": "gain", "wrong": "both_wrong", "right": "both_right", "other": "unjudged"}
"""Outcome of `diagnosis.two_runs` -> standing."""


def of_two(answers: pd.DataFrame, names: tuple[str, str]) -> Prompts:
    """The prompts to which two runs gave other answers, both answers beside each other.

    Args:
        answers: of `diagnosis.two_runs.TwoRuns`, in its order; not empty.
        names: what the runs are called.
    """
    differing = records(answers.loc[answers["outcome"] != "alike"])
    limit = text_limit([str(row[f"text_{x}"]) for row in differing for x in "ab"])
    texts = [_prompt_text(row) for row in differing]
    shared = shared_beginning(texts)
    cards: list[Card] = []
    for row, text in zip(differing, texts, strict=True):
        old, new = (clean(row[f"text_{x}"], limit) for x in "ab")
        both = (
            (names[0], row["correct_a"], [Piece("same", old)], old),
            (names[1], row["correct_b"], word_diff(old, new), new),
        )
        stands = OF_TWO[row["outcome"]]
        cards.append(
            Card(
                standing=stands, changed="yes", in_tags="", in_phrases="", rank=SHORT.get(stands, "other text"),
                title=one_line((text[shared:] or text)[:110], None), text=text, tags="", reference="", marks="",
                is_open=len(cards) < OPEN,
                answers=tuple(Answer(n, _verdict(c), pieces if words else ()) for n, c, pieces, words in both),
            )
        )  # fmt: skip
    alike = len(answers) - len(cards)
    counts = Counter(card.standing for card in cards)
    judged = any(card.standing != "unjudged" for card in cards)
    summary = f"{plural(len(answers), 'prompt')} under the same decoding: {alike} answers alike, {len(cards)} different"
    if judged:
        summary += f"; {counts['regression']} right in {names[0]} and wrong in {names[1]}, {counts['gain']} the reverse"
    standings = _choices(LABELS, (card.standing for card in cards)) if judged else ()
    return Prompts(tuple(cards), standings, (), (), (), names[0], f"{summary}.")


def _verdict(correct: Any) -> str:
    unknown = correct is None or math.isnan(correct)
    return "" if unknown else " ✓ right" if correct >= 0.5 else " ✗ wrong"


def _choices(labels: Mapping[str, str], values: Iterable[str]) -> tuple[Choice, ...]:
    """The values that some card has, in the order of the labels."""
    counts = Counter(values)
    return tuple(Choice(value, label, counts[value]) for value, label in labels.items() if counts[value])


def _summary(comparison: Mapping[str, Any], left_out: int, limit: int) -> str:
    of = comparison["outcomes"]
    changed = sum(bool(e["changed"]) for e in comparison["prompts"])
    known = sum(e["changed"] is not None for e in comparison["prompts"])
    ends = f"{comparison['baseline']} against {comparison['to']}"
    parts = [f"{ends}: {changed} of {known} answers changed"] if known else []
    if of["regression"] + of["gain"]:
        parts.append(f"{of['regression']} went from right to wrong, {of['gain']} from wrong to right")
    text = "; ".join(parts) + "." if parts else f"{plural(len(comparison['prompts']), 'prompt')}."
    if limit < LIMITS[0]:
        text += f" Answers are cut after {limit} characters here; outputs/ holds them whole."
    if left_out:
        text += f" The last {left_out} prompts are left out for the page's size."
    return text


def text_limit(texts: Iterable[str], budget: int = BUDGET) -> int:
    """The most characters of one answer that keep the page inside its budget (a diff can show two answers)."""
    lengths = [len(text) for text in texts]
    return next((limit for limit in LIMITS if 2 * sum(min(n, limit) for n in lengths) <= budget), LIMITS[-1])


def _prompt_text(entry: Mapping[str, Any]) -> str:
    prompt = entry["prompt"]
    return clean(prompt if isinstance(prompt, str) else entry["prompt_id"], 1_200)


def shared_beginning(texts: list[str]) -> int:
    """Characters that all prompts begin with, up to a line's end (a chat template's system turn); 0 for one prompt."""
    first, last = min(texts, default=""), max(texts, default="")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first.rfind("\n", 0, same) + 1


def _card(
    entry: Mapping[str, Any],
    comparison: Mapping[str, Any],
    limit: int,
    shared: int,
    tags: Sequence[int],
    phrases: Sequence[str],
    is_open: bool,
) -> Card:
    text, found = _prompt_text(entry), by_checkpoint(entry)
    old, new = (next((a for c, a in found.items() if c.label == comparison[end]), None) for end in ("baseline", "to"))
    # The same text can be judged differently at two checkpoints; the entry knows both.
    stands = entry["outcome"] if entry["outcome"] in ("regression", "gain") else standing(old, new) or "unjudged"
    base = clean(old["text"], limit) if old is not None else None
    answers = [_answer(a, base, limit, a is old) for a in entry["answers"]]
    judged = [a["correct"] for c, a in found.items() if c.model == POLICY and a.get("correct") is not None]
    changed = {True: "yes", False: "no"}.get(entry["changed"], "")
    reference = entry["reference"]
    return Card(
        standing=stands,
        changed=changed,
        in_tags=" ".join(map(str, tags)),
        in_phrases=" ".join(map(str, held(new["text"], phrases))) if new is not None and phrases else "",
        rank=SHORT.get(stands) or {"yes": "changed", "no": "same"}.get(changed, ""),
        title=one_line((text[shared:] or text)[:110], None),
        text=text,
        tags=clean(", ".join(map(str, entry["tags"] or [])), 80),
        reference=clean(reference, 400) if isinstance(reference, str) else "",
        marks="".join("✓" if c >= 0.5 else "✗" for c in judged) if len(judged) > 1 else "",
        is_open=is_open,
        answers=tuple(answers),
    )


def by_checkpoint(entry: Mapping[str, Any]) -> dict[Checkpoint, Mapping[str, Any]]:
    """The checkpoints that answered a prompt of `compare`, in order, each with its answer."""
    looks = [(Checkpoint(at["model"], at["step"]), answer) for answer in entry["answers"] for at in answer["looks"]]
    return dict(sorted(looks, key=lambda pair: (pair[0].model == POLICY, pair[0].model, pair[0].step)))


def _answer(answer: Mapping[str, Any], base: str | None, limit: int, is_base: bool) -> Answer:
    text = clean(answer["text"], limit)
    pieces = [Piece("same", text)] if base is None or is_base else word_diff(base, text)
    return Answer(looks_text(answer["looks"]), _verdict(answer.get("correct")), pieces if text else ())


def looks_text(looks: Sequence[Mapping[str, Any]]) -> str:
    """The checkpoints in words: "ref, steps 0, 20"."""
    steps = [str(look["step"]) for look in looks if look["model"] == POLICY]
    others = [clean(look["model"], 40) for look in looks if look["model"] != POLICY]
    own = [f"{'step' if len(steps) == 1 else 'steps'} {', '.join(steps)}"] if steps else []
    return ", ".join([*others, *own])
