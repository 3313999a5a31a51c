"""How sure is a change that was measured over a sample of pairs: a bootstrap over pairs, seeded.

The pairs of the set are the sample; both checkpoints are measured on the same pairs, so the interval is that of the
paired change. It says nothing about another training seed. Resamples are drawn as multinomial counts, so that every
quantity is a matrix product of the same draws: intervals of different quantities belong together.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dpo_diag.diagnosis.aligned import SideArrays
from dpo_diag.records import metrics

FloatArray = npt.NDArray[np.float64]
RESAMPLES = 1000
MINIMUM_PAIRS = 8
"""Below this many pairs no interval is given: a bootstrap of so few says less than the numbers themselves."""
_CELLS = 4_000_000


@lru_cache(maxsize=2)
def bootstrap_counts(n: int, seed: int = 0) -> FloatArray:
    """How often each of n pairs is drawn in each resample, shape (resamples, n); fewer resamples for very many pairs
    (at least 200), so that the draws stay below a few dozen megabytes.
    Read only: the same draws serve every quantity over the same pairs."""
    resamples = max(200, min(RESAMPLES, _CELLS // max(n, 1)))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    draws = np.asarray(counts, dtype=np.float64)
    draws.flags.writeable = False
    return draws


def interval(draws: npt.ArrayLike, level: float = 0.95) -> list[float] | None:
    """Percentile interval [low, high] of bootstrap draws; None if any draw is not finite."""
    values = np.asarray(draws, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        return None
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return [float(low), float(high)]


def mean_interval(values: npt.ArrayLike, seed: int = 0) -> list[float] | None:
    """95 % interval of a mean over pairs; None below MINIMUM_PAIRS."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < MINIMUM_PAIRS:
        return None
    return interval(bootstrap_counts(array.size, seed) @ array / array.size)


def perplexity_intervals(arrays: SideArrays, seed: int = 0) -> dict[str, list[float] | None]:
    """95 % intervals of dlog of each perplexity of one side: name -> [low, high], None below MINIMUM_PAIRS."""
    n = arrays.sum_from.size
    if n < MINIMUM_PAIRS:
        return dict.fromkeys(metrics.PERPLEXITIES)
    counts = bootstrap_counts(n, seed)
    ce0, ce1 = metrics.ce(arrays.sum_from, arrays.n_from), metrics.ce(arrays.sum_to, arrays.n_to)
    top = max(float(ce0.max()), float(ce1.max()))
    columns = np.column_stack(
        [ce0, ce1, np.exp(ce0 - top), np.exp(ce1 - top), arrays.sum_from, arrays.sum_to, arrays.n_from, arrays.n_to]
    )
    c0, c1, e0, e1, s0, s1, n0, n1 = (counts @ columns).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "ppl_token": interval(s0 / n0 - s1 / n1),
            "ppl_seq_mean": interval(np.log(e1) - np.log(e0)),
            "ppl_seq_geomean": interval((c1 - c0) / n),
        }


def sign(value: float, bounds: list[float] | None) -> int:
    """+1 or -1 where the change is distinguishable from 0 (its interval excludes it; without an interval its own
    sign), else 0."""
    if not np.isfinite(value) or value == 0.0:
        return 0
    if bounds is not None and bounds[0] <= 0.0 <= bounds[1]:
        return 0
    return 1 if value > 0 else -1
