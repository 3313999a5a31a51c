"""Which knob moved what in a sweep, and which runs no other one beats in everything."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.sweep import Sweep
from dpo_diag.diagnosis.sweep_rank import ALSO
from dpo_diag.stats import Interval, mean_difference, t_interval

RISE = "chosen_ce_change"
"""Column of the rise of the chosen answers' cross-entropy: less is better."""


@dataclass(frozen=True)
class Effect:
    """What another value of one knob did to one outcome.

    Attributes:
        knob: the overridden parameter; `a`, `b`: its first value and the one that is held against it, as written.
        outcome: a column of the sweep's table.
        before, after: the outcome's mean over the runs of each value.
        change: b - a. Over pairs of runs that differ in nothing else (`matched`), Student's t; where there are none
            between the two groups of runs (Welch). No interval below three of either.
    """

    knob: str
    a: str
    b: str
    outcome: str
    before: float
    after: float
    change: Interval
    matched: bool

    def document(self) -> dict[str, Any]:
        return {
            "knob": self.knob, "a": self.a, "b": self.b, "outcome": self.outcome, "before": self.before,
            "after": self.after, "change": self.change.value, "interval": self.change.bounds, "n": self.change.n,
            "matched": self.matched,
        }  # fmt: skip


def outcomes_of(collected: Sweep) -> list[str]:
    """Columns that may be compared between these runs: task scores, and what ranks (see `sweep_rank.ranking`)."""
    return [*collected.scores, *(c for c in ALSO if c in collected.ranking.by)]


def effects(collected: Sweep) -> list[Effect]:
    """Every knob's effect on every outcome, of each value against the first; [] for fewer than two values.

    The seed is no knob. Intervals are not corrected for how many there are: they show where to look.
    """
    runs = collected.runs
    knobs = [p for p in collected.parameters if p != "seed"]
    found = []
    for knob in knobs:
        values = in_order(runs[knob].astype(str).tolist())
        others = [p for p in collected.parameters if p != knob]
        for outcome in outcomes_of(collected):
            of_value = {value: _by_setting(runs.loc[runs[knob] == value], others, outcome) for value in values}
            found += [_effect(knob, values[0], value, outcome, of_value) for value in values[1:]]
    return [effect for effect in found if math.isfinite(effect.change.value)]


def _by_setting(runs: pd.DataFrame, others: Sequence[str], outcome: str) -> dict[Hashable, float]:
    """The rest of what was set -> the outcome's mean over those runs, of finite ones."""
    known = runs.loc[np.isfinite(runs[outcome].astype(float))]
    keys = [tuple(row) for row in known[list(others)].astype(str).to_numpy().tolist()]
    grouped: dict[Hashable, list[float]] = {}
    for key, value in zip(keys, known[outcome].astype(float), strict=True):
        grouped.setdefault(key, []).append(float(value))
    return {key: float(np.mean(values)) for key, values in grouped.items()}


def _effect(knob: str, a: str, b: str, outcome: str, of_value: dict[str, dict[Hashable, float]]) -> Effect:
    first, second = of_value[a], of_value[b]
    shared = [key for key in first if key in second]
    if shared:
        change = t_interval([second[key] - first[key] for key in shared])
        ends = [[of[key] for key in shared] for of in (first, second)]
    else:
        change = mean_difference(list(first.values()), list(second.values()))
        ends = [list(first.values()), list(second.values())]
    before, after = (float(np.mean(v)) if v else math.nan for v in ends)
    return Effect(knob, a, b, outcome, before, after, change, bool(shared))


def in_order(values: Sequence[str]) -> list[str]:
    """Distinct values: numbers ascending, anything else as it comes.

    >>> in_order(["1e-3", "0.5", "2e-4"]), in_order(["ipo", "dpo", "ipo"])
    (['2e-4', '1e-3', '0.5'], ['ipo', 'dpo'])
    """
    distinct = list(dict.fromkeys(values))
    numbers = [as_number(v) for v in distinct]
    if any(n is None for n in numbers):
        return distinct
    return [v for _, v in sorted(zip(numbers, distinct, strict=True))]


def as_number(text: str) -> float | None:
    """The finite number that a text is; None for any other."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def pareto(collected: Sweep) -> list[str]:
    """Runs that no other one beats in both the ranking's task score (more is better) and the rise of the chosen
    answers' cross-entropy (less is better), ties kept, in the order of the score; [] where they cannot be compared."""
    score, runs = collected.ranking.score, collected.runs
    if score is None or RISE not in collected.ranking.by:
        return []
    known = runs.loc[np.isfinite(runs[score].astype(float)) & np.isfinite(runs[RISE].astype(float))]
    points = list(zip(known["run"], known[score].astype(float), known[RISE].astype(float), strict=True))
    front = [
        (run, s, rise) for run, s, rise in points
        if not any(s2 >= s and r2 <= rise and (s2, r2) != (s, rise) for _, s2, r2 in points)
    ]  # fmt: skip
    return [str(run) for run, _, _ in sorted(front, key=lambda p: -p[1])]
