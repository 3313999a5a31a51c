"""Which run of a sweep did best: by the task first, and only among runs that were measured on the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.evidence import ScoreCurve
from dpo_diag.diagnosis.measure import Measure
from dpo_diag.diagnosis.sweep_values import column_of, questions_of
from dpo_diag.thresholds import defaults

ALSO = {"reward_accuracy": "higher", "chosen_ce_change": "lower"}
"""What ranks where no task score does, and between equal scores: of the same pairs under the same tokenizer alone."""


@dataclass(frozen=True)
class Ranking:
    """How ranks were given.

    Attributes:
        by: columns in their order.
        score: the task score among them; None where there is none.
        best: the run at the top; None where nothing is ranked.
        level: of the intervals of the distance to it.
        paired: whether every distance to it is one over the same questions.
        why_not: why some or all have no rank; "" where all have one.
    """

    by: tuple[str, ...] = ()
    score: str | None = None
    best: str | None = None
    level: float = 0.95
    paired: bool = False
    why_not: str = ""


def ranking(
    runs: pd.DataFrame, curves: Sequence[Sequence[ScoreCurve]], sets: Sequence[str]
) -> tuple[pd.DataFrame, Ranking]:
    """The table with `rank` (1 is best, equal runs share one, null is not ranked), and `to_best`, `to_best_low`,
    `to_best_high`: the score less the best run's, paired where both recorded their answers to the same questions. The
    rows stay in their order.

    By the first task score that the most runs have of the same questions; then, and where there is none, by reward
    accuracy and by the rise of the chosen answers' cross-entropy, where all have the same pairs and tokenizer. A loss
    is never ranked: it is another quantity under every beta.

    Args:
        curves: each run's task scores.
        sets: what was measured under which tokenizer, per run.
    """
    if runs.empty:
        return runs, Ranking()
    level = defaults()["confidence_scores"]
    chosen = _score(curves)
    alike = len(set(sets)) == 1
    also = [c for c in ALSO if alike and runs[c].notna().all()]
    by = [*([chosen[0]] if chosen else []), *also]
    if not by or (not chosen and not alike):
        why = "other data or tokenizers, and no task score of the same questions" if not alike else "nothing to rank by"
        return runs.assign(rank=pd.Series(pd.NA, index=runs.index, dtype="Int64")), Ranking(why_not=why)
    ranked = np.asarray([chosen is None or chosen[1] in [_key(c) for c in of] for of in curves])
    keys = [_turned(runs, column) for column in by]
    order = sorted(np.flatnonzero(ranked).tolist(), key=lambda i: tuple(key[i] for key in keys))
    rank = pd.Series(pd.NA, index=runs.index, dtype="Int64")
    for place, i in enumerate(order):
        before = order[place - 1] if place else None
        equal = before is not None and all(key[i] == key[before] for key in keys)
        rank.iloc[i] = rank.iloc[before] if equal and before is not None else place + 1
    best = int(order[0])
    out, paired = runs.assign(rank=rank), False
    if chosen:
        distances = _to_best(curves, best, chosen[1])
        paired = all(m.paired for m in distances if m is not None)
        changes = [None if m is None else m.change for m in distances]
        for end, name in (("", "value"), ("_low", "low"), ("_high", "high")):
            out[f"to_best{end}"] = [None if c is None else getattr(c, name) for c in changes]
    left = int((~ranked).sum())
    why_not = f"{left} without {chosen[0]} of the same questions" if left and chosen else ""
    return out, Ranking(tuple(by), chosen[0] if chosen else None, str(runs["run"].iloc[best]), level, paired, why_not)


def _key(curve: ScoreCurve) -> tuple[str, str]:
    return column_of(curve), questions_of(curve)


def _score(curves: Sequence[Sequence[ScoreCurve]]) -> tuple[str, tuple[str, str]] | None:
    """The score, of the same questions, that the most runs have; of several the first. At least two runs have it, or
    there is one run alone."""
    counts: dict[tuple[str, str], int] = {}
    for of in curves:
        for curve in of:
            counts[_key(curve)] = counts.get(_key(curve), 0) + 1
    if not counts:
        return None
    key = max(counts, key=lambda k: counts[k])
    return (key[0], key) if counts[key] > 1 or len(curves) == 1 else None


def _turned(runs: pd.DataFrame, column: str) -> Any:
    """Numbers of which less is better; a missing one is worst."""
    values = runs[column].astype(float).to_numpy()
    turned = values if ALSO.get(column) == "lower" else -values
    return np.where(np.isnan(turned), np.inf, turned)


def _to_best(curves: Sequence[Sequence[ScoreCurve]], best: int, key: tuple[str, str]) -> list[Measure | None]:
    """Each run's score against the best one's, at the end of both; None for the best itself and runs without it."""
    top = next(c for c in curves[best] if _key(c) == key)
    found: list[Measure | None] = []
    for i, of in enumerate(curves):
        own = None if i == best else next((c for c in of if _key(c) == key), None)
        found.append(None if own is None else own.since(top, len(top.steps) - 1, len(own.steps) - 1, defaults()))
    return found
