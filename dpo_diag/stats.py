"""The statistics of every statement in this project: one interval, one bootstrap, one test of each kind.

Which one, where several would do:

- A mean, or a mean paired difference, over independent units (pairs, prompts): Student's t. It is closed form, and at
  small n the percentile bootstrap is narrower than it should be (Hesterberg 2015, arXiv 1411.5279). A mean of 0/1
  values: Wilson's interval, which does not vanish at 10 of 10.
- A statistic that is no mean (a perplexity, a share of a total, kappa): the percentile bootstrap over units, or over
  clusters of units where several share a source.
- The same questions at two checkpoints: `dpo_diag.paired`. Newcombe's interval (1998) is for two samples whose pairing
  is unknown.
- Several rows or checkpoints tested at once: the p-values are corrected (`false_discovery`, `corrected_for`), the
  interval is not, so that one change has one interval wherever it is printed.
- A series of batch means from a log (`dpo_diag.ends`): its noise is estimated from successive differences (von Neumann
  1941), so that a trend does not count as noise.

Values that are not finite are left out and not counted in n: whether a run holds them is a finding of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

# scipy.stats imports for a second what scipy.special (distributions) and a few lines of numpy (ranks) hold.
from scipy import special

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
SEED = 20_240_130
RESAMPLES = 2_000
LEAST_FOR_T = 3
"""Values below which a mean has no interval."""
LEAST_FOR_BOOTSTRAP = 8
"""Units below which nothing is resampled: so few cannot show how much they scatter."""
NORMAL_MAD = 1.4826
"""Makes a median absolute deviation a standard deviation under a normal distribution."""
POWER = 0.8
TOO_FEW = "too few for an interval"
_CELLS = 4_000_000
"""Numbers in one table of resamples (32 MB); beyond it there are fewer resamples, at least 200."""


@dataclass(frozen=True)
class Interval:
    """An estimate over n units with its confidence interval; NaN bounds where n is too small for one.

    `level`: NaN where the bounds are no confidence interval: a number known exactly, a range (`few_rows_level`).
    `clusters`: how many groups of units that belong together (pairs of one prompt) it was clustered by; 0 where each
    unit stands alone.
    """

    value: float
    low: float
    high: float
    n: int
    method: str = ""
    level: float = LEVEL
    clusters: int = 0

    @property
    def bounds(self) -> list[float] | None:
        """[low, high], or None where there is no interval: the form that JSON documents hold."""
        return [self.low, self.high] if math.isfinite(self.low) and math.isfinite(self.high) else None

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above 0; False without an interval."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below 0; False without an interval."""
        return self.high < 0

    @property
    def sign(self) -> int:
        """+1 or -1 where the estimate is distinguishable from 0, else 0; without an interval, the estimate's."""
        if not math.isfinite(self.value) or self.value == 0 or (self.bounds and self.low <= 0 <= self.high):
            return 0
        return 1 if self.value > 0 else -1

    @property
    def error(self) -> float:
        """The standard error that the interval's width stands for; NaN without an interval."""
        return (self.high - self.low) / (2 * quantile(self.level))

    def needed(self, distance: float, power: float = POWER) -> int | None:
        """Units at which a true `distance` lies outside the interval with that power, if they scatter as these do:
        n ((z_level + z_power) error / distance)^2. None without an interval, without scatter, or for no distance.

        150 questions, -0.073 with a standard error of 0.040: 150 (2.80 x 0.040 / 0.073)^2 = 354.
        """
        if self.bounds is None or not self.error > 0 or not distance:
            return None
        z = quantile(self.level) + float(special.ndtri(power))
        return math.ceil(self.n * (z * self.error / distance) ** 2)

    def with_least(self, least: float) -> Interval:
        """The estimate alone where fewer than `least` units, or clusters of them, are behind it."""
        enough = (self.clusters or self.n) >= least
        return self if enough else no_interval(self.value, self.n, self.level, self.clusters)

    def scaled(self, factor: float) -> Interval:
        """The same estimate in another unit; a negative factor turns the interval round."""
        low, high = sorted((self.low * factor, self.high * factor))
        return replace(self, value=self.value * factor, low=low, high=high)

    def shifted(self, by: float) -> Interval:
        """The estimate plus a number that is known exactly."""
        return replace(self, value=self.value + by, low=self.low + by, high=self.high + by)

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def finite(values: npt.ArrayLike) -> FloatArray:
    """The finite values, float64, shape (n,)."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def quantile(level: float) -> float:
    return float(special.ndtri(0.5 + level / 2))


def t_quantile(level: float, degrees: float) -> float:
    return float(special.stdtrit(degrees, 0.5 + level / 2))


def exactly(value: float) -> Interval:
    """A number that is known as it is, e.g. the mean of a whole set."""
    return Interval(value, value, value, 1, "exact", math.nan)


def t_p_value(value: float, error: float, degrees: float) -> float:
    """Two-sided p-value of 0 for an estimate with this standard error; without scatter 0, or 1 where it is 0."""
    if error == 0:
        return 0.0 if value else 1.0
    return float(2 * special.stdtr(degrees, -abs(value) / error))


def no_interval(value: float, n: int, level: float, clusters: int = 0) -> Interval:
    return Interval(value, math.nan, math.nan, n, TOO_FEW, level, clusters)


# --- one sample -------------------------------------------------------------------------------------------------------


def mean_interval(values: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """The mean of independent values: Wilson's interval where all are 0 or 1, else Student's t.

    Differences go to `t_interval`. NaN for no values; no interval below LEAST_FOR_T values (Wilson's has
    no such least).
    """
    x = finite(values)
    if x.size and np.isin(x, (0.0, 1.0)).all():
        return proportion(float(x.sum()), x.size, level)
    return t_interval(x, level)


def t_interval(values: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """The mean of independent values, Student's t whatever they are: for differences, which may all be 0 and are no
    proportion then. NaN for no values; no interval below LEAST_FOR_T."""
    x = finite(values)
    if x.size < LEAST_FOR_T:
        return no_interval(float(x.mean()) if x.size else math.nan, x.size, level)
    mean, half = float(x.mean()), t_quantile(level, x.size - 1) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(mean, mean - half, mean + half, x.size, "t", level)


def proportion(successes: float, n: float, level: float = LEVEL) -> Interval:
    """Wilson's score interval of successes / n; NaN for n = 0. `successes` may be a sum of part scores."""
    if not n > 0:
        return no_interval(math.nan, 0, level)
    p, z2 = successes / n, quantile(level) ** 2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) * math.sqrt(max(p * (1 - p), 0.0) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and 1 the bound is the share itself; the difference of two roundings would print 2.8e-17.
    low = max(0.0, centre - half) if p > 0 else 0.0
    high = min(1.0, centre + half) if p < 1 else 1.0
    return Interval(p, low, high, round(n), "Wilson", level)


def normal_interval(value: float, error: float, n: int, method: str, level: float = LEVEL) -> Interval:
    """An estimate whose standard error is known from elsewhere (a likelihood's curvature), taken as normal."""
    half = quantile(level) * error
    return Interval(value, value - half, value + half, n, method, level)


# --- ranks ------------------------------------------------------------------------------------------------------------


def ranks(values: npt.ArrayLike) -> FloatArray:
    """Ranks from 1, equal values at the mean of theirs, shape (n,).

    >>> ranks([30, 10, 20, 10]).tolist()
    [4.0, 1.5, 3.0, 1.5]
    """
    _, place, n = np.unique(np.asarray(values, dtype=np.float64).ravel(), return_inverse=True, return_counts=True)
    mean: FloatArray = np.cumsum(n) - (n - 1) / 2
    return mean[place]


def rank_correlation(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[float, float]:
    """Spearman's rho and its two-sided p (t with n - 2 degrees of freedom); (NaN, NaN) below three values, where one is
    NaN, or where either side is constant."""
    a, b = (np.asarray(v, dtype=np.float64).ravel() for v in (x, y))
    if a.size < 3 or np.isnan(a).any() or np.isnan(b).any() or (a == a[0]).all() or (b == b[0]).all():
        return math.nan, math.nan
    rho, free = float(np.corrcoef(ranks(a), ranks(b))[1, 0]), a.size - 2
    with np.errstate(divide="ignore"):
        t = rho * np.sqrt(np.maximum(free / np.float64((rho + 1) * (1 - rho)), 0))
    return rho, t_p_value(float(t), 1.0, free)


# --- two samples ------------------------------------------------------------------------------------------------------


def proportion_change(p0: float, n0: float, p1: float, n1: float, level: float = LEVEL) -> Interval:
    """p1 - p0 of two independent samples (Newcombe 1998, method 10, from Wilson's intervals).

    Wider than a paired interval: the one to use where only the shares are known, not who answered what.
    """
    first, second = proportion(p0 * n0, n0, level), proportion(p1 * n1, n1, level)
    low = p1 - p0 - math.hypot(p1 - second.low, first.high - p0)
    high = p1 - p0 + math.hypot(second.high - p1, p0 - first.low)
    return Interval(p1 - p0, low, high, min(first.n, second.n), "Newcombe, unpaired", level)


def mean_difference(first: npt.ArrayLike, second: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """mean(second) - mean(first) of two independent samples (Welch 1947); no interval below LEAST_FOR_T values each.

    n is the smaller sample's.
    """
    x, y = finite(first), finite(second)
    n = min(x.size, y.size)
    if n == 0:
        return no_interval(math.nan, 0, level)
    value = float(y.mean() - x.mean())
    if n < LEAST_FOR_T:
        return no_interval(value, n, level)
    vx, vy = float(x.var(ddof=1)) / x.size, float(y.var(ddof=1)) / y.size
    if vx + vy == 0:
        return Interval(value, value, value, n, "Welch", level)
    share = vx / (vx + vy)  # not the variances themselves: their squares overflow
    degrees = 1 / (share**2 / (x.size - 1) + (1 - share) ** 2 / (y.size - 1))
    half = t_quantile(level, degrees) * math.sqrt(vx + vy)
    return Interval(value, value - half, value + half, n, "Welch", level)


def independent_test(p0: float, n0: float, p1: float, n1: float) -> float:
    """Two-sided p-value of p1 = p0 for the shares of two independent samples: the pooled score test; 1 where both
    samples are all right, or all wrong."""
    pooled = (p0 * n0 + p1 * n1) / (n0 + n1)
    error = math.sqrt(max(pooled * (1 - pooled), 0.0) * (1 / n0 + 1 / n1))
    return float(2 * special.ndtr(-abs(p1 - p0) / error)) if error > 0 else 1.0


def false_discovery(p_values: npt.ArrayLike) -> FloatArray:
    """q-values (Benjamini & Hochberg 1995), shape as given: the false discovery rate at which each would be called.

    NaN (not tested) stays NaN and does not count as a test.
    """
    p = np.asarray(p_values, dtype=np.float64).ravel()
    q, known = np.full(p.shape, np.nan), np.flatnonzero(np.isfinite(p))
    falling = known[np.argsort(p[known])[::-1]]
    m = falling.size
    q[falling] = np.minimum.accumulate(p[falling] * (m / np.arange(m, 0, -1)))
    return q


def corrected_for(p: float, looks: int) -> float:
    """A p-value for the best of several looks (Bonferroni): p times their number, at most 1."""
    return min(1.0, p * max(1, looks))


# --- statistics that are no means -------------------------------------------------------------------------------------


def cluster_index(clusters: Sequence[Hashable] | npt.NDArray[np.generic]) -> npt.NDArray[np.intp]:
    """Unit -> number of its cluster, 0 to clusters - 1, shape (n,)."""
    return np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)[1]


def _draws(n: int) -> int:
    """Resamples of n units that fit into one table."""
    return max(200, min(RESAMPLES, _CELLS // n))


@lru_cache(maxsize=4)
def _counts(n: int) -> FloatArray:
    """How often each of n units is drawn in each resample, (draws, n), read only.

    The same draws serve every quantity over the same units, so that intervals of related quantities belong together.
    """
    draws = _draws(n)
    rng = np.random.default_rng(SEED)
    # Drawing indices and counting them is five to fifteen times faster than multinomial draws.
    drawn = rng.integers(0, n, size=(draws, n), dtype=np.int64) + np.arange(draws)[:, None] * n
    counts = np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)
    counts.flags.writeable = False
    return counts


def bootstrap(
    statistic: Callable[[FloatArray], npt.ArrayLike],
    n: int,
    level: float = LEVEL,
    clusters: Sequence[Hashable] | npt.NDArray[np.generic] | None = None,
) -> Interval:
    """Percentile interval of a statistic over n units; seeded, so that the same input gives the same interval.

    Args:
        statistic: (draws, n) counts of how often each unit stands in a resample -> (draws,) values. A weighted mean of
            x is `counts @ x / counts.sum(axis=1)`. It is also called with one row of ones: the estimate itself.
        clusters: unit -> what it belongs to, shape (n,): whole clusters are drawn (several prompts of one source,
            several samples of one prompt). LEAST_FOR_BOOTSTRAP then counts clusters.

    No interval below LEAST_FOR_BOOTSTRAP units, or where fewer than half of the resamples give a finite value.
    """
    if n == 0:
        return no_interval(math.nan, 0, level)
    value = float(np.asarray(statistic(np.ones((1, n))), dtype=np.float64).ravel()[0])
    index = None if clusters is None else cluster_index(clusters)
    clustered = 0 if index is None else int(index.max()) + 1
    units = clustered or n
    if units < LEAST_FOR_BOOTSTRAP:
        return no_interval(value, n, level, clustered)
    counts = _counts(units) if index is None else _counts(units)[: _draws(n), index]
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.asarray(statistic(counts), dtype=np.float64)
    known = drawn[np.isfinite(drawn)]
    if known.size < drawn.size / 2:
        return no_interval(value, n, level, clustered)
    low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2])
    method = "bootstrap, clustered" if clustered else "bootstrap"
    return Interval(value, float(low), float(high), n, method, level, clustered)


# --- series of batch means --------------------------------------------------------------------------------------------


def noise_sd(values: npt.ArrayLike) -> float:
    """Standard deviation of a series' noise around whatever slow trend it has, from successive differences.

    Differences beyond five robust deviations (a spike, an epoch's stair) are clipped to that; 0 for a constant series,
    NaN below three values. Reference: von Neumann 1941, the mean square successive difference.
    """
    x = finite(values)
    if x.size < 3:
        return math.nan
    d = np.diff(x)
    robust = NORMAL_MAD * float(np.median(np.abs(d)))
    if robust > 0:
        d = np.clip(d, -5 * robust, 5 * robust)
    return float(math.sqrt(float((d**2).mean()) / 2))
