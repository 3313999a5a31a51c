"""Which prompts to read first, and which only: by what became of the answer, by tag, by id, by a phrase."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.outputs.phrases import contains

OUTCOMES = ("regression", "gain", "changed", "unchanged")
"""From the baseline to the target: right -> wrong (or a lower share of right), wrong -> right, another text of the same
correctness (or of an unknown one), the same text. In the order in which they are worth reading."""

STANDINGS = ("regression", "gain", "both_wrong", "both_right")
"""Of judged answers: what moved, or what both are."""

Answer = Mapping[str, Any]


def standing(before: Answer | None, after: Answer | None) -> str | None:
    """One of STANDINGS for the two answers to a prompt; None where one is missing or not judged."""
    moved = outcome(before, after)
    if before is None or after is None or moved in ("regression", "gain"):
        return moved
    old, new = (answer.get("correct") for answer in (before, after))
    if old is None or new is None or math.isnan(old) or math.isnan(new):
        return None
    return "both_right" if new >= 0.5 else "both_wrong"


def outcome(before: Answer | None, after: Answer | None) -> str | None:
    """One of OUTCOMES for the two answers (`text`, `correct`) to a prompt; None where one is missing."""
    if before is None or after is None:
        return None
    old, new = (answer.get("correct") for answer in (before, after))
    if old is not None and new is not None and old != new and not (math.isnan(old) or math.isnan(new)):
        return "regression" if new < old else "gain"
    return "changed" if before["text"] != after["text"] else "unchanged"


def reading_order(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Regressions first, then gains, then what changed, the often changed ones first."""
    rank = OUTCOMES.index(entry["outcome"]) if entry["outcome"] else len(OUTCOMES)
    return rank, -int(entry["times_changed"])


def counted(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Outcome -> prompts, every outcome named."""
    found = Counter(entry["outcome"] for entry in entries)
    return {name: found[name] for name in OUTCOMES}


def selected(
    entries: Sequence[dict[str, Any]],
    *,
    outcomes: Sequence[str] = (),
    tag: str | None = None,
    prompts: Sequence[str] = (),
    phrase: str | None = None,
) -> list[dict[str, Any]]:
    """The entries of `compare`'s `prompts` that fit all that is asked; nothing asked: all.

    Args:
        phrase: words that stand together in one of the prompt's answers; case aside.

    Raises:
        DiagError: an outcome, a tag or a prompt that does not exist; a phrase that nothing holds.
    """
    if unknown := [name for name in outcomes if name not in OUTCOMES]:
        raise DiagError("no such outcome", got=unknown[0], expected=f"one of {', '.join(OUTCOMES)}", usage=True)
    kept = [e for e in entries if not outcomes or e["outcome"] in outcomes]
    if tag:
        tags = sorted({t for e in entries for t in e["tags"] or []})
        if tag not in tags:
            raise DiagError("no prompt has this tag", got=tag, expected=f"one of {tags}", usage=True)
        kept = [e for e in kept if tag in (e["tags"] or [])]
    if prompts:
        known = [e["prompt_id"] for e in entries]
        if absent := [p for p in prompts if p not in known]:
            raise DiagError("no such prompt", got=absent, expected=f"e.g. {known[:5]}", usage=True)
        kept = [e for e in kept if e["prompt_id"] in prompts]
    if phrase:
        kept = [e for e in kept if any(contains(a["text"], phrase) for a in e["answers"])]
    return kept


def wide(entries: Sequence[Mapping[str, Any]], checkpoints: Mapping[tuple[str, int], str]) -> pd.DataFrame:
    """One row per prompt: prompt_id, outcome, tags (joined by spaces), prompt, reference, then of every checkpoint its
    text under the checkpoint's name and `NAME correct` (1, 0, a share; empty where nobody judged).

    Args:
        entries: of `compare`'s `prompts`.
        checkpoints: (model, step) -> name of the column, in order.
    """
    rows = []
    for entry in entries:
        of = {(look["model"], look["step"]): answer for answer in entry["answers"] for look in answer["looks"]}
        row = {
            "prompt_id": entry["prompt_id"], "outcome": entry["outcome"], "tags": " ".join(entry["tags"] or []),
            "prompt": entry["prompt"], "reference": entry["reference"],
        }  # fmt: skip
        for key, name in checkpoints.items():
            row |= {name: of.get(key, {}).get("text"), f"{name} correct": of.get(key, {}).get("correct")}
        rows.append(row)
    names = [column for name in checkpoints.values() for column in (name, f"{name} correct")]
    return pd.DataFrame(rows, columns=["prompt_id", "outcome", "tags", "prompt", "reference", *names])
