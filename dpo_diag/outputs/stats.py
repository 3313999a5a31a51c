"""The statistics behind every statement about answers: intervals and tests over prompts, which are the unit.

All tests are paired (the same prompt before and after), seeded, and made for dozens to hundreds of prompts.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

DRAWS = 2_000
FLIPS = 9_999
SEED = 20_240_130


class Estimate(NamedTuple):
    """A mean over n prompts with its 95 % interval; NaN for n = 0."""

    value: float
    low: float
    high: float
    n: int


class Change(NamedTuple):
    """A paired mean difference (after - before) over n prompts, its 95 % interval, effect size and p-value."""

    delta: float
    low: float
    high: float
    effect: float
    p: float
    n: int


def finite(values: npt.ArrayLike) -> FloatArray:
    """The finite values, float64, one-dimensional."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


@lru_cache(maxsize=24)
def _resamples(n: int, draws: int, seed: int) -> FloatArray:
    """How often each of n prompts stands in each resample, (draws, n): the same for every metric of a run."""
    # Drawing indices and counting them is five to fifteen times faster than multinomial draws.
    chosen = np.random.default_rng(seed).integers(0, n, size=(draws, n), dtype=np.int64)
    chosen += np.arange(draws)[:, None] * n
    return np.bincount(chosen.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def bootstrap_means(values: FloatArray, draws: int = DRAWS, seed: int = SEED) -> FloatArray:
    """Means of `draws` resamples of the values, (draws,); the same resamples for every array of one length."""
    n = len(values)
    if n and (values == values[0]).all():
        return np.full(draws, float(values[0]))
    if n > 2_000:
        # The resampling matrix would take hundreds of megabytes; a mean over so many is normal.
        rng = np.random.default_rng(seed)
        return rng.normal(values.mean(), values.std() / math.sqrt(n), draws)
    return _resamples(n, draws, seed) @ values / n


def mean_interval(values: npt.ArrayLike, seed: int = SEED) -> Estimate:
    """The mean and its percentile-bootstrap 95 % interval; Wilson's for values that are all 0 or 1.

    (Of ten successes in ten, a bootstrap would say that nothing is uncertain.)
    """
    x = finite(values)
    if x.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if np.isin(x, (0.0, 1.0)).all():
        from dpo_diag.records.metrics import wilson_interval

        return Estimate(float(x.mean()), *wilson_interval(float(x.sum()), x.size), x.size)
    low, high = np.quantile(bootstrap_means(x, seed=seed), (0.025, 0.975))
    return Estimate(float(x.mean()), float(low), float(high), x.size)


def binomial_tail(k: int, n: int) -> float:
    """P(X >= k) for X ~ Binomial(n, 1/2), exact; 1 for k <= 0."""
    if k <= 0:
        return 1.0
    if n > 4_000:
        # Normal approximation with continuity correction: exact sums of huge integers take seconds there.
        return 0.5 * math.erfc((k - 0.5 - n / 2) / math.sqrt(n / 4) / math.sqrt(2))
    return sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p-value from the discordant counts; 1 for none."""
    return min(1.0, 2 * binomial_tail(max(gained, lost), gained + lost)) if gained + lost else 1.0


def sign_flip(differences: npt.ArrayLike, seed: int = SEED, flips: int = FLIPS) -> float:
    """Two-sided paired permutation p-value: under no change each difference's sign is a coin toss; 1 for none.

    Differences that are all 0 or of one size are counted exactly (McNemar).
    """
    d = finite(differences)
    d = d[d != 0]
    if d.size == 0:
        return 1.0
    if np.allclose(np.abs(d), abs(d[0])):
        return mcnemar(int((d > 0).sum()), int((d < 0).sum()))
    rng = np.random.default_rng(seed)
    observed, hits = abs(d.sum()) * (1 - 1e-12), 0
    for start in range(0, flips, 1_000):
        signs = rng.integers(0, 2, size=(min(1_000, flips - start), d.size), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ d) >= observed).sum())
    return (hits + 1) / (flips + 1)


def paired_change(before: npt.ArrayLike, after: npt.ArrayLike, seed: int = SEED) -> Change:
    """Mean of after - before over prompts where both are finite.

    `effect` is the mean difference over its standard deviation (Cohen's d_z), 0 when nothing changed, infinite when
    all changed alike.
    """
    b, a = (np.asarray(v, dtype=np.float64).ravel() for v in (before, after))
    keep = np.isfinite(b) & np.isfinite(a)
    d = a[keep] - b[keep]
    if d.size == 0:
        return Change(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    low, high = np.quantile(bootstrap_means(d, seed=seed), (0.025, 0.975))
    spread = float(d.std(ddof=1)) if d.size > 1 else 0.0
    mean = float(d.mean())
    effect = mean / spread if spread > 0 else math.copysign(math.inf, mean) if mean else 0.0
    return Change(mean, float(low), float(high), effect, sign_flip(d, seed), d.size)


def benjamini_hochberg(p_values: npt.ArrayLike) -> FloatArray:
    """q-values (Benjamini & Hochberg 1995): the false discovery rate at which each would be called; NaN stays NaN.

    >>> benjamini_hochberg([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.04, 0.04]
    """
    p = np.asarray(p_values, dtype=np.float64).ravel()
    q = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    if known.size == 0:
        return q
    order = known[np.argsort(p[known], kind="stable")]
    raw = p[order] * known.size / np.arange(1, known.size + 1)
    q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q


def entropy(counts: npt.ArrayLike) -> float:
    """Entropy in nats of the distribution that the counts give; NaN for none."""
    c = np.asarray(counts, dtype=np.float64)
    c = c[c > 0]
    if c.size == 0:
        return math.nan
    p = c / c.sum()
    return float(-(p * np.log(p)).sum()) + 0.0
