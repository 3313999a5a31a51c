"""Every setting of a sweep against one of them, over the questions that both answered and the seeds that both ran; or
against its own start.

The unit is the question: its answers are averaged over the seeds first, and the difference is paired over questions
(`dpo_diag.paired`). Its interval says how far the difference may be one of these questions; how far another seed would
move it is told beside it, as the least and the most of the differences seed by seed, since few seeds give no interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.evidence import ScoreCurve
from dpo_diag.diagnosis.logged import measured_split, metric_rows
from dpo_diag.diagnosis.measure import enough
from dpo_diag.diagnosis.pair_rows import PairRows
from dpo_diag.diagnosis.sweep import SEED, Sweep, column_set
from dpo_diag.diagnosis.sweep_values import column_of
from dpo_diag.errors import DiagError
from dpo_diag.paired import paired_change
from dpo_diag.records import load_run
from dpo_diag.records.schemas import SIDES
from dpo_diag.stats import Interval, false_discovery
from dpo_diag.thresholds import defaults

START = "start"
"""In place of a setting: each is held against its own first evaluation."""
VALUES = (
    "loss",
    "ce/chosen",
    *(f"ppl_{kind}/{side}" for side in SIDES for kind in ("token", "seq_mean", "seq_geomean")),
)
"""Metrics of the measured pairs that stand beside the scores."""


@dataclass(frozen=True)
class Difference:
    """One score of one setting less that of what it is held against.

    Attributes:
        score: column of the sweep's table.
        value, base: the score of either, a mean over questions and seeds.
        change: value - base with its interval over questions; without one where the answers are not recorded.
        p: of no difference; NaN likewise.
        by_seed: the difference of each seed.
        q: p corrected over the settings (Benjamini-Hochberg).
    """

    score: str
    value: float
    base: float
    change: Interval
    p: float
    by_seed: tuple[float, ...]
    q: float = math.nan


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seed.

    Attributes:
        given: overridden parameter -> value.
        seeds: those that the base ran, too; of the base all.
        values: VALUES -> mean over the seeds of the last evaluation.
        scores: the base's own have no difference: there `scores` is empty.
    """

    given: dict[str, str]
    seeds: tuple[str, ...]
    values: dict[str, float]
    scores: list[Difference] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        scores = [
            {"score": d.score, "value": d.value, "base": d.base, "difference": d.change.value,
             "interval": d.change.bounds, "n": d.change.n, "q": None if math.isnan(d.q) else d.q,
             "by_seed": list(d.by_seed)}
            for d in self.scores
        ]  # fmt: skip
        return {"overrides": self.given, "seeds": list(self.seeds), "values": self.values, "scores": scores}


def against(collected: Sweep, base: str) -> tuple[list[Setting], list[Setting]]:
    """(what the others are held against, the others), in the sweep's order.

    Args:
        base: `name=value` of overridden parameters, joined by commas: each setting is held against the one that differs
            from it in these alone. START: each against its own first evaluation.

    Raises:
        DiagError: a parameter that is not varied, a value that no run has.
    """
    wanted = None if base == START else _parsed(collected, base)
    knobs = [p for p in collected.parameters if p != SEED]
    runs = collected.runs.assign(_seed=collected.runs[SEED].astype(str) if SEED in collected.runs else "")
    grouped: dict[tuple[str, ...], pd.DataFrame] = (
        {
            tuple(map(str, key)): rows
            for key, rows in runs.groupby([runs[k].astype(str) for k in knobs], sort=False, observed=True)
        }
        if knobs
        else {(): runs}
    )
    bases, others = [], []
    for key, rows in grouped.items():
        given = dict(zip(knobs, key, strict=True))
        if wanted is None:
            others.append(Setting(given, tuple(rows["_seed"]), _values(rows), _scores(collected, rows, rows, at=0)))
            continue
        if all(given[k] == v for k, v in wanted.items()):
            bases.append(Setting(given, tuple(rows["_seed"]), _values(rows)))
            continue
        held = grouped.get(tuple((given | wanted)[k] for k in knobs))
        shared = [] if held is None else [seed for seed in rows["_seed"] if seed in set(held["_seed"])]
        if held is not None and shared:
            own, theirs = (of[of["_seed"].isin(shared)].sort_values("_seed") for of in (rows, held))
            others.append(Setting(given, tuple(shared), _values(own), _scores(collected, own, theirs)))
    return bases, _corrected(others)


def _parsed(collected: Sweep, base: str) -> dict[str, str]:
    wanted = {}
    for part in base.split(","):
        name, _, value = part.partition("=")
        name = column_set(name.strip()) if column_set(name.strip()) in collected.parameters else name.strip()
        if name not in collected.parameters or name == SEED:
            knobs = ", ".join(p for p in collected.parameters if p != SEED) or "nothing was varied but the seed"
            raise DiagError("no such setting", where="--against", got=part, expected=f"one of {knobs}", usage=True)
        values = list(dict.fromkeys(collected.runs[name].astype(str)))
        if value.strip() not in values:
            raise DiagError(
                f"no run has {name}={value.strip()}",
                where="--against",
                expected=f"one of {', '.join(values)}",
                usage=True,
            )
        wanted[name] = value.strip()
    return wanted


def _values(rows: pd.DataFrame) -> dict[str, float]:
    """VALUES at each run's last evaluation, mean over the runs."""
    found: dict[str, list[float]] = {name: [] for name in VALUES}
    for folder in rows["run"]:
        run = load_run(folder)
        pairs, split = PairRows(run), measured_split(run)
        for name in VALUES:
            of = metric_rows(pairs, name, split)
            found[name].append(float(of["value"].iloc[-1]) if len(of) else math.nan)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _scores(collected: Sweep, own: pd.DataFrame, held: pd.DataFrame, at: int = -1) -> list[Difference]:
    """The differences, not corrected yet, of the scores that all these runs have; a row of `held` to each of `own`.

    `at`: the evaluation of `held` that counts, of `own` it is the last.
    """
    limits, found = defaults(), []
    for score in collected.scores:
        mine, theirs = (_curves(collected, of, score) for of in (own, held))
        if len(mine) < len(own) or len(theirs) < len(held):
            continue
        ends = [np.array([c.values[i] for c in side], dtype=np.float64) for side, i in ((mine, -1), (theirs, at))]
        value, base = (float(e.mean()) for e in ends)
        change, p = Interval(value - base, math.nan, math.nan, 0), math.nan
        both = [(c, -1) for c in mine] + [(c, at) for c in theirs]
        answers = [c.answers[:, i] for c, i in both if c.answers is not None and c.prompts == mine[0].prompts]
        if len(answers) == len(both):
            after, before = np.mean(answers[: len(mine)], axis=0), np.mean(answers[len(mine) :], axis=0)
            paired = paired_change(before, after, limits["confidence_scores"], mine[0].sources)
            change, p = enough(paired.delta, limits), paired.p
        found.append(Difference(score, value, base, change, p, tuple((ends[0] - ends[1]).tolist())))
    return found


def _curves(collected: Sweep, runs: pd.DataFrame, score: str) -> list[ScoreCurve]:
    return [c for run in runs["run"] for c in collected.curves[run] if column_of(c) == score]


def _corrected(others: list[Setting]) -> list[Setting]:
    """With q: each score's p-values corrected over the settings."""
    differences = [d for setting in others for d in setting.scores if not math.isnan(d.p)]
    q_of: dict[int, float] = {}
    for score in {d.score for d in differences}:
        own = [d for d in differences if d.score == score]
        q_of |= dict(zip(map(id, own), false_discovery([d.p for d in own]).tolist(), strict=True))
    return [replace(s, scores=[replace(d, q=q_of.get(id(d), math.nan)) for d in s.scores]) for s in others]
