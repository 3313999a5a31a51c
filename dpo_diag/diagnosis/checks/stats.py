"""The statistics that checks rest on: an effect never stands without an interval.

Two situations occur. Per-pair records give paired differences (a t interval of their mean). A log gives a series of
batch means, whose noise is estimated from successive differences (von Neumann), so that a trend does not inflate it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats as st

from dpo_diag.records.metrics import newcombe_interval

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN bounds where too few values allow none."""

    value: float
    low: float
    high: float
    n: int

    @property
    def above(self) -> bool:
        return self.low > 0

    @property
    def below(self) -> bool:
        return self.high < 0

    def scaled(self, factor: float) -> Interval:
        """The same estimate in another unit (factor > 0)."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.n)

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def mean_interval(values: npt.ArrayLike, confidence: float) -> Interval:
    """t interval of a mean, e.g. of per-pair differences; bounds are NaN below three finite values.

    Non-finite values are left out (they are DVG011's matter).
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if x.size < 3:
        return Interval(float(x.mean()) if x.size else math.nan, math.nan, math.nan, int(x.size))
    half = float(st.t.ppf(0.5 + confidence / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, int(x.size))


def bootstrap(
    statistic: Callable[[npt.NDArray[np.int64]], float], n: int, confidence: float, draws: int = 400, seed: int = 0
) -> Interval:
    """Percentile interval of `statistic(indices)` over resampled pairs; same seed, same interval."""
    rng = np.random.default_rng(seed)
    everything = np.arange(n)
    values = np.array([statistic(rng.integers(0, n, n)) for _ in range(draws)])
    values = values[np.isfinite(values)]
    if values.size < draws / 2:
        return Interval(statistic(everything), math.nan, math.nan, n)
    low, high = np.quantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(statistic(everything), float(low), float(high), n)


def noise_sd(values: npt.ArrayLike) -> float:
    """Standard deviation of the noise of a series around whatever slow trend it has: from successive differences.

    Differences beyond five robust deviations (a spike, an epoch's stair) are clipped to that; 0 for a constant series,
    NaN below three values. Reference: von Neumann 1941, the mean square successive difference.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if x.size < 3:
        return math.nan
    d = np.diff(x)
    robust = 1.4826 * float(np.median(np.abs(d)))
    if robust > 0:
        d = np.clip(d, -5 * robust, 5 * robust)
    return float(math.sqrt(float((d**2).mean()) / 2))


@dataclass(frozen=True)
class Ends:
    """First and last part of a series of batch means, and their difference with its interval."""

    first: float
    last: float
    delta: Interval
    last_level: Interval
    n: int
    k: int
    sd: float


def ends(values: npt.ArrayLike, confidence: float, share: float = 0.25) -> Ends | None:
    """Means of the first and last `share` of a series (at least three rows each); None below six finite values."""
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if x.size < 6:
        return None
    k = max(3, int(x.size * share))
    sd = noise_sd(x)
    first, last = float(x[:k].mean()), float(x[-k:].mean())
    # n / 2: successive differences overlap, so they hold fewer degrees of freedom than rows.
    t = float(st.t.ppf(0.5 + confidence / 2, max(2, x.size // 2)))
    half, level_half = t * sd * math.sqrt(2 / k), t * sd / math.sqrt(k)
    delta = Interval(last - first, last - first - half, last - first + half, int(x.size))
    return Ends(first, last, delta, Interval(last, last - level_half, last + level_half, k), int(x.size), k, sd)


def proportion_change(p0: float, n0: float, p1: float, n1: float, confidence: float) -> Interval:
    """p1 - p0 of two independent samples of answers, with Newcombe's interval from two Wilson intervals."""
    z = float(st.norm.ppf(0.5 + confidence / 2))
    return Interval(p1 - p0, *newcombe_interval(p0, n0, p1, n1, z), int(min(n0, n1)))


def paired_proportion_change(before: npt.ArrayLike, after: npt.ArrayLike, confidence: float) -> Interval:
    """Mean of after - before over the same questions, with a Wilson-type interval that does not vanish at 0 changes.

    For correct/wrong answers this is McNemar's setting: only the questions that changed carry information. The
    interval is Agresti and Min's (2005): half a question is added to each of the four cells.
    """
    b, a = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    d = a - b
    n = d.size
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    z = float(st.norm.ppf(0.5 + confidence / 2))
    mean, square = float(d.sum()) / (n + 2), (float((d**2).sum()) + 1) / (n + 2)
    half = z * math.sqrt(max(square - mean**2, 0.0) / (n + 2))
    return Interval(float(d.mean()), mean - half, mean + half, n)


def top_share(gains: npt.ArrayLike, k: int) -> float:
    """Share of the gross rise (the sum of positive gains) that its k largest carry; NaN if nothing rose."""
    g = np.asarray(gains, dtype=np.float64)
    rises = np.sort(g[g > 0])[::-1]
    total = float(rises.sum())
    return float(rises[:k].sum() / total) if total > 0 else math.nan


def ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator; NaN where the denominator is 0 or either is not finite."""
    if denominator == 0 or not (math.isfinite(numerator) and math.isfinite(denominator)):
        return math.nan
    return numerator / denominator
