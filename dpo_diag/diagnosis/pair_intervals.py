"""THE interval of a change over the pairs of a set: explanation, checks, gate and reports take it from here.

One level (`confidence`, that of the checks), and no interval below `least_for_interval` pairs. Pairs that share a
prompt are one cluster: what a model learns of a prompt moves all of its pairs, so that four pairs of one prompt say
less than four of four. Both steps are measured on the same pairs, so the change is paired. A mean has Student's t,
cluster robust where pairs share prompts (Cameron and Miller 2015; `paired.clustered_mean`), a ratio of sums the same to
first order; whatever is neither has the percentile bootstrap over pairs or whole prompts. Where a change was chosen by
looking (the best of several steps), its p-value is corrected, not its interval: one change has one interval, wherever
it is printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.pair_rows import FloatArray, PairRows
from dpo_diag.paired import clustered_mean
from dpo_diag.stats import Interval, bootstrap, cluster_index, t_interval
from dpo_diag.text import about, plural
from dpo_diag.thresholds import Thresholds, load_thresholds


@dataclass(frozen=True, eq=False)
class PairIntervals:
    """How the intervals over a run's pairs are made.

    Attributes:
        level: their confidence level.
        least: pairs (prompts, where pairs share them) below which there is none.
        prompts: pair_id -> what stands for its prompt; None where no two pairs share one, or where that is not known.
    """

    level: float
    least: float
    prompts: pd.Series[Any] | None = None

    @classmethod
    def of(cls, rows: PairRows, thresholds: Thresholds | None = None) -> PairIntervals:
        """Those of a run."""
        t = load_thresholds() if thresholds is None else thresholds
        return cls(t["confidence"], t["least_for_interval"], rows.prompts)

    def mean(self, values: npt.ArrayLike, pair_ids: Iterable[str]) -> Interval:
        """The mean of finite values, one per pair, shapes (pairs,): of changes, or of what they are changes of."""
        x, clusters = np.asarray(values, dtype=np.float64).ravel(), self._clusters(pair_ids)
        known = np.isfinite(x)
        index = None if clusters is None else cluster_index(clusters[known])
        if index is None or not index.size or index.max() + 1 == index.size:
            return t_interval(x[known], self.level).with_least(self.least)
        return _named(clustered_mean(x[known], index, self.level).with_least(self.least))

    def ratio_change(
        self, before: FloatArray, n_before: FloatArray, after: FloatArray, n_after: FloatArray, pair_ids: Iterable[str]
    ) -> Interval:
        """The change of a ratio of sums (an entropy per token of all responses), shapes (pairs,), finite: each pair's
        part of it to first order, which average to the change (Cochran 1977, section 2.11)."""
        ends = [(v.sum() / n.sum(), v, n) for v, n in ((before, n_before), (after, n_after))]
        old, new = (ratio + (v - ratio * n) / n.mean() for ratio, v, n in ends)
        return self.mean(new - old, pair_ids)

    def of_statistic(self, statistic: Callable[[FloatArray], npt.ArrayLike], pair_ids: Iterable[str]) -> Interval:
        """What is no mean: a statistic of counts (see `stats.bootstrap`) over pairs in this order."""
        ids = list(pair_ids)
        return _named(bootstrap(statistic, len(ids), self.level, self._clusters(ids)).with_least(self.least))

    def n_prompts(self, pair_ids: Iterable[str]) -> int | None:
        """How many prompts these pairs have; None where each has its own, or where that is not known."""
        clusters = self._clusters(pair_ids)
        return None if clusters is None else len(set(clusters))

    def units(self, pair_ids: Iterable[str]) -> int:
        """Pairs or, where they share prompts, prompts: what the intervals scatter over."""
        ids = list(pair_ids)
        return self.n_prompts(ids) or len(ids)

    def counted(self, pair_ids: Iterable[str]) -> str:
        """ "124 pairs", "400 pairs of 100 prompts"."""
        ids = list(pair_ids)
        return counted(len(ids), self.n_prompts(ids))

    def _clusters(self, pair_ids: Iterable[str]) -> npt.NDArray[np.object_] | None:
        """What each of these pairs belongs to; None where no two of them share a prompt."""
        if self.prompts is None:
            return None
        ids = pd.Index(list(pair_ids))
        own = self.prompts.reindex(ids)
        clusters = own.where(own.notna(), pd.Series(ids, index=ids)).to_numpy(dtype=object)
        return clusters if len(set(clusters)) < len(clusters) else None


def _named(estimate: Interval) -> Interval:
    """What the clusters are stands in the method."""
    if not (estimate.bounds and estimate.clusters):
        return estimate
    base = estimate.method.partition(",")[0]
    return replace(estimate, method=f"{base}, clustered in {plural(estimate.clusters, 'prompt')}")


def counted_about(needed: int, measured: Interval) -> str:
    """ "about" that many pairs, of as many per prompt as were measured: "190 pairs", "190 pairs of 48 prompts"."""
    prompts = math.ceil(needed * measured.clusters / measured.n) if measured.clusters else None
    return f"{about(needed)} pairs" + (f" of {about(prompts)} prompts" if prompts else "")


def counted(pairs: int, prompts: int | None) -> str:
    """ "124 pairs", "400 pairs of 100 prompts"."""
    return plural(pairs, "pair") + (f" of {plural(prompts, 'prompt')}" if prompts else "")
