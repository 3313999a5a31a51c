"""Which of several evaluations is the one to keep: by a metric of the records, within the noise of its differences.

The same pairs or prompts are measured at every step, so a difference of two steps is paired, and so is its standard
error. The bare maximum of many noisy evaluations is mostly the luckiest; kept is the earliest checkpoint that is no
worse than the best one by more than `keep.band` standard errors (the one-standard-error rule of Breiman et al. 1984):
it has moved least from where it started. The same band says, while training, what is an improvement.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.paired import paired_change
from dpo_diag.records import Run
from dpo_diag.records.metric_table import Better, metric_of, of_each_pair, pair_sums
from dpo_diag.records.schemas import TRAIN_SPLIT
from dpo_diag.stats import proportion_change

FloatArray = npt.NDArray[np.float64]
SCORE = "score"
"""The task's score over all checked answers of the fixed prompts."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric along the evaluations of one set.

    Attributes:
        steps, values: ascending steps, the metric there; (evaluations,).
        units: what each value is the mean of, pair by pair or prompt by prompt, (units, evaluations); None where the
            records do not hold it.
        weights: how many units are behind each value, NaN where unknown; (evaluations,).
        broken: steps at which the policy's log-probs are NaN, whatever was logged of them; their value is NaN.
    """

    name: str
    split: str
    better: Better
    steps: tuple[int, ...]
    values: FloatArray
    units: FloatArray | None
    weights: FloatArray
    broken: frozenset[int] = frozenset()

    @property
    def n(self) -> int | None:
        """Units behind each value; None where unknown."""
        if self.units is not None:
            return len(self.units)
        known = self.weights[np.isfinite(self.weights)]
        return int(known.min()) if known.size else None

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return -1 if self.better == "lower" else 1

    def gain(self, earlier: int, later: int) -> tuple[float, float]:
        """How much better evaluation `later` (an index) is than `earlier`, and the standard error of that: paired where
        the units are known, of two samples for shares of known size, else NaN."""
        value = self.sign * float(self.values[later] - self.values[earlier])
        if self.units is not None:
            return value, paired_change(self.units[:, earlier], self.units[:, later]).delta.error
        p, n = self.values[[earlier, later]], self.weights[[earlier, later]]
        if (n > 0).all() and ((p >= 0) & (p <= 1)).all():
            return value, proportion_change(p[0], n[0], p[1], n[1]).error
        return value, math.nan


@dataclass(frozen=True)
class Candidate:
    """One checkpoint that is on disk and was measured.

    Attributes:
        behind: how much worse than the best of them; error: the standard error of that, NaN where it is unknown.
        within: by no more than the band.
    """

    step: int
    value: float
    behind: float
    error: float
    within: bool


def choose(curve: Curve, on_disk: Collection[int], band: float) -> tuple[int | None, list[Candidate]]:
    """The step to keep of those on disk that were measured, None where there are none; and all of them, by step."""
    places = [i for i, step in enumerate(curve.steps) if step in on_disk and math.isfinite(curve.values[i])]
    if not places:
        return None, []
    best = max(places, key=lambda i: (curve.sign * curve.values[i], -i))
    found = []
    for i in places:
        behind, error = curve.gain(i, best) if i != best else (0.0, 0.0)
        found.append(Candidate(curve.steps[i], float(curve.values[i]), behind, error, _within(behind, error, band)))
    return next(c.step for c in found if c.within), found


def without_gain(curve: Curve, band: float) -> tuple[int, int]:
    """(step of the last evaluation that was better than all before it beyond the band, evaluations since then); the
    first evaluation is the first such one.

    Raises:
        ValueError: no evaluations.
    """
    best = 0
    for i in range(1, len(curve.steps)):
        gain, error = curve.gain(best, i)
        if math.isfinite(gain) and not _within(gain, error, band):
            best = i
    return curve.steps[best], len(curve.steps) - 1 - best


def _within(gain: float, error: float, band: float) -> bool:
    return gain <= (band * error if math.isfinite(error) else 0.0)


# --- from the records -------------------------------------------------------------------------------------------------


def curve_of(run: Run, metric: str | None = None) -> Curve:
    """The metric of a run by which its checkpoints are judged.

    Args:
        metric: NAME or NAME@SPLIT; None: `score`, else rewards/accuracies, else ce/chosen, whichever the run has first.

    Raises:
        DiagError: the run does not record it, or nobody knows which way is better.
    """
    name, _, split = (metric or "").partition("@")
    if metric is not None:
        found = _curve(run, name, split or None)
        if found is None:
            raise DiagError(
                "the run does not record this at any evaluation", where=run.path, got=metric,
                expected=f"one of {', '.join(_recorded(run)[:12]) or 'none: it was never evaluated'}", usage=True,
            )  # fmt: skip
        return found
    for name in (SCORE, *_scores(run), "rewards/accuracies", "ce/chosen", "ce/response"):
        if (found := _curve(run, name, None)) is not None:
            return found
    raise DiagError("nothing was evaluated", where=run.path, expected="answers that were checked, or a held-out set")


def _curve(run: Run, name: str, split: str | None) -> Curve | None:
    if name == SCORE:
        return _of_answers(run)
    known = metric_of(name)
    better: Better = "higher" if name.startswith("score/") else known.better if known is not None else "neither"
    history = run.history
    rows = history[(history["name"].astype(str) == name) & (history["split"].astype(str) != TRAIN_SPLIT)]
    splits = [str(s) for s in rows["split"].unique()]
    chosen = split or next(iter(run.preferred(splits)), None)
    if chosen not in splits:
        return None
    if better == "neither":
        raise DiagError("neither way is better", where=name, expected="a metric of which one is", usage=True)
    rows = rows[rows["split"].astype(str) == chosen].sort_values("step")
    steps = tuple(int(step) for step in rows["step"])
    values, weights = (rows[c].to_numpy(dtype=np.float64) for c in ("value", "weight"))
    units, broken = _of_pairs(run, name, chosen, steps)
    values = values if units is None else units.mean(axis=0)
    values = np.where(np.isin(steps, [*broken]), np.nan, values)  # comparisons with NaN count as wrong: a share of 0
    return Curve(name, chosen, better, steps, values, units, weights, broken)


def _of_answers(run: Run) -> Curve | None:
    """The mean of the checker's verdicts on the policy's answers, prompt by prompt, of the prompts that were answered
    at every step."""
    if not run.has("outputs"):
        return None
    rows = run.read("outputs", ["step", "model", "prompt_id", "sample", "correct", "seed"])
    rows = rows[(rows["model"].astype(str) == "policy") & rows["correct"].notna()]
    if rows["seed"].isna().any():  # greedy answers, beside which seeded samples measure something else
        rows = rows[rows["seed"].isna()]
    table = rows.pivot_table(index="prompt_id", columns="step", values="correct", observed=True).dropna()
    if table.empty:
        return None
    units = table.to_numpy(dtype=np.float64)
    steps = tuple(int(str(step)) for step in table.columns)
    return Curve(SCORE, "prompts", "higher", steps, units.mean(axis=0), units, np.full(len(steps), float(len(units))))


def _of_pairs(run: Run, name: str, split: str, steps: tuple[int, ...]) -> tuple[FloatArray | None, frozenset[int]]:
    """Each pair's value at each step, of the pairs that were measured at all of them, None where it has none; and
    `Curve.broken`, of which the values are NaN."""
    if not run.has("pairs"):
        return None, frozenset()
    columns = ["step", "role", "pair_id", "side", "sum_logp", "n_tokens", "loss_logp"]
    rows = run.read("pairs", columns, splits=[split]).drop_duplicates(["step", "role", "pair_id", "side"], keep="last")
    policy, reference = (rows[rows["role"].astype(str) == role].sort_values("pair_id") for role in ("policy", "ref"))
    policy = policy[policy["step"].isin(steps)]
    broken = frozenset(int(step) for step in policy.loc[policy["sum_logp"].isna(), "step"].unique())
    complete = policy.groupby("pair_id", observed=True).size()
    ids = complete.index[complete == 2 * len(steps)]
    policy, reference = policy[policy["pair_id"].isin(ids)], reference[reference["pair_id"].isin(ids)]
    if not len(ids):
        return None, broken
    none = np.full(len(ids), np.nan)
    parts = [
        none if step in broken else _each(of, reference, name, run)
        for step, of in policy.groupby("step", observed=True)
    ]  # fmt: skip
    known = [part for part in parts if part is not None]
    units = np.stack(known, axis=1) if known and len(known) == len(parts) else None
    whole = ~np.isin(steps, [*broken])
    return (None if units is None or not np.isfinite(units[:, whole]).all() else units), broken


def _each(policy: pd.DataFrame, reference: pd.DataFrame, name: str, run: Run) -> FloatArray | None:
    base, _, side = name.partition("/")
    if base == "ce":
        of = policy[policy["side"].astype(str) == side]
        return None if of.empty else (-of["sum_logp"] / of["n_tokens"]).to_numpy(dtype=np.float64)
    return of_each_pair(pair_sums(policy, reference), name, run.info.loss)


def _scores(run: Run) -> list[str]:
    return [name for name in _recorded(run) if name.startswith("score/")]


def _recorded(run: Run) -> list[str]:
    """Metrics of evaluations that one can choose by, in alphabetical order."""
    history = run.history
    names = history.loc[history["split"].astype(str) != TRAIN_SPLIT, "name"].astype(str).unique()
    found = [n for n in names if n.startswith("score/") or ((m := metric_of(n)) is not None and m.better != "neither")]
    return sorted(found)
