"""The same questions answered at two checkpoints: one interval and one test of the change.

Answers right or wrong, or graded: the mean paired difference and its standard error, Student's t (Miller 2024, arXiv
2411.00640, section 4), beside McNemar's exact test, or sign flips for grades. Where fewer than LEAST_CHANGED answers
changed their standard error says too little (arXiv 2503.01747): Agresti and Min's interval (2005).

Questions that share a source (paraphrases of one, questions on one text): the standard error of clustered differences
(Miller 2024, section 2.2; Cameron and Miller 2015). n stays the number of questions. Several samples of one question
are averaged before they come here: they are one question.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from dpo_diag.stats import (
    LEAST_FOR_T,
    LEVEL,
    SEED,
    Interval,
    cluster_index,
    finite,
    no_interval,
    quantile,
    t_interval,
    t_p_value,
    t_quantile,
)

LEAST_CHANGED = 10
"""Changed answers from which their standard error carries an interval. Of 30 questions with 5 % lost and 1 % won
Student's t covers the truth in 78 % of samples, Agresti and Min's in all; of 150 with 15 % and 5 % both in 95 %
(enumerated in the tests)."""
_FLIPS = 9_999


@dataclass(frozen=True)
class PairedChange:
    """Mean of after - before over the same units, its p-value, and its effect size (Cohen's d_z).

    `effect` is the mean difference over the differences' standard deviation: 0 where nothing changed, infinite where
    all changed alike; NaN, like `p`, for no units.
    """

    delta: Interval
    p: float
    effect: float


def paired_change(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    level: float = LEVEL,
    clusters: Sequence[Hashable] | npt.NDArray[np.generic] | None = None,
) -> PairedChange:
    """after - before over the units where both are finite, in one order; shapes (n,).

    Scores that are all 0 or 1 (right or wrong) have `paired_proportion_change` and McNemar's exact test; others a t
    interval of the mean difference and the sign-flip test.

    Args:
        clusters: unit -> what it belongs to, shape (n,): where several units share one, `clustered_mean` and the
            sign flips of whole clusters.
    """
    b, a = (np.asarray(v, dtype=np.float64).ravel() for v in (before, after))
    both = np.isfinite(b) & np.isfinite(a)
    b, a = b[both], a[both]
    d = a - b
    if d.size == 0:
        return PairedChange(no_interval(math.nan, 0, level), math.nan, math.nan)
    mean, spread = float(d.mean()), float(d.std(ddof=1)) if d.size > 1 else 0.0
    effect = mean / spread if spread > 0 else math.copysign(math.inf, mean) if mean else 0.0
    index = None if clusters is None else cluster_index(np.asarray(clusters, dtype=object).ravel()[both])
    if index is not None and index.max() + 1 < d.size:
        return PairedChange(clustered_mean(d, index, level), sign_flip(np.bincount(index, weights=d)), effect)
    if np.isin(b, (0.0, 1.0)).all() and np.isin(a, (0.0, 1.0)).all():
        lost, won = int((d < 0).sum()), int((d > 0).sum())
        return PairedChange(paired_proportion_change(lost, won, d.size, level), mcnemar(lost, won), effect)
    return PairedChange(_named(t_interval(d, level), "paired t"), sign_flip(d), effect)


def paired_proportion_change(lost: int, won: int, n: int, level: float = LEVEL) -> Interval:
    """(won - lost) / n: of n questions `lost` were right before and wrong after, `won` the reverse.

    Student's t of the n differences -1, 0 and 1; where fewer than LEAST_CHANGED answers changed, Agresti and Min's:
    Wald's interval with half a question added to each of the four cells, so that it does not vanish where nothing
    changed. NaN for n = 0.

    25 lost and 8 won of 150: -0.1133, variance of the differences (33 - 17^2 / 150) / 149 = 0.2086, standard error
    0.03729, t(149) = 1.976: -0.187 to -0.040.
    """
    if n == 0:
        return no_interval(math.nan, 0, level)
    value = (won - lost) / n
    if lost + won >= LEAST_CHANGED:
        variance = (lost + won - (won - lost) ** 2 / n) / (n - 1)
        half = t_quantile(level, n - 1) * math.sqrt(variance / n)
        return Interval(value, value - half, value + half, n, "paired t", level)
    b, c, m = lost + 0.5, won + 0.5, n + 2.0
    centre, half = (c - b) / m, quantile(level) * math.sqrt((b + c) - (c - b) ** 2 / m) / m
    return Interval(value, centre - half, centre + half, n, "paired, Agresti-Min", level)


def clustered_mean(values: npt.ArrayLike, index: npt.NDArray[np.intp], level: float = LEVEL) -> Interval:
    """The mean of finite values of which those of one cluster belong together, shape (n,).

    Variance G / (G - 1) sum_g (sum of g's deviations)^2 / n^2 over G clusters, Student's t with G - 1 degrees of
    freedom (Cameron and Miller 2015, section II). Clusters of one value each: `t_interval`. n counts values; no
    interval below LEAST_FOR_T clusters.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    groups = int(index.max()) + 1 if x.size else 0
    if groups < LEAST_FOR_T:
        return no_interval(float(x.mean()) if x.size else math.nan, x.size, level, groups)
    sums = np.bincount(index, weights=x - x.mean())
    half = t_quantile(level, groups - 1) * math.sqrt(groups / (groups - 1) * float((sums**2).sum())) / x.size
    value = float(x.mean())
    return Interval(value, value - half, value + half, x.size, f"t, clustered in {groups} sources", level, groups)


def t_test(change: Interval) -> float:
    """Two-sided p-value of no change, from a mean's t interval (`t_interval`, `clustered_mean`); NaN without one.

    For a change that was chosen by looking: its p-value is corrected, its interval stays as it is (see `stats`).
    """
    if change.bounds is None:
        return math.nan
    degrees = (change.clusters or change.n) - 1
    return t_p_value(change.value, (change.high - change.low) / (2 * t_quantile(change.level, degrees)), degrees)


def _named(estimate: Interval, method: str) -> Interval:
    return replace(estimate, method=method) if estimate.bounds else estimate


def mcnemar(lost: int, won: int) -> float:
    """McNemar's exact two-sided p-value from the two discordant counts; 1 where nothing changed."""
    return min(1.0, 2 * float(special.bdtr(min(lost, won), lost + won, 0.5))) if lost + won else 1.0


def sign_flip(differences: npt.ArrayLike) -> float:
    """Two-sided paired permutation p-value: if nothing changed, each difference's sign is a coin toss; 1 for none.

    Differences of one size are counted exactly (McNemar). (scipy's permutation_test does the same in 15 times the time
    at 300 prompts, and one comparison of checkpoints asks for hundreds of these.)
    """
    d = finite(differences)
    d = d[d != 0]
    if d.size == 0:
        return 1.0
    if np.allclose(np.abs(d), abs(d[0])):
        return mcnemar(int((d < 0).sum()), int((d > 0).sum()))
    rng = np.random.default_rng(SEED)
    # The rounding of a sum in another order must not decide whether a resample is as extreme as the observed one.
    observed, hits = abs(d.sum()) * (1 - 1e-12), 0
    for start in range(0, _FLIPS, 1_000):
        signs = rng.integers(0, 2, size=(min(1_000, _FLIPS - start), d.size), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ d) >= observed).sum())
    return (hits + 1) / (_FLIPS + 1)
