"""Do two reviewers agree beyond chance: Cohen's kappa over the items that both judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpo_diag.stats import FloatArray, Interval, bootstrap


@dataclass(frozen=True)
class Agreement:
    """Share of equal verdicts, and kappa with its 95 % interval over the items; NaN where undefined."""

    equal: float
    kappa: Interval


def _kappa(tables: FloatArray) -> FloatArray:
    """Kappa of tables of counts or shares, (..., k, k) -> (...); NaN where chance alone gives full agreement."""
    total = tables.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(tables, axis1=-2, axis2=-1) / total
        expected = (tables.sum(axis=-1) * tables.sum(axis=-2)).sum(axis=-1) / total**2
        return np.asarray(np.where(expected < 1, (observed - expected) / (1 - expected), np.nan))


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> Agreement:
    """Cohen (1960), unweighted; interval by resampling items (none for too few, see `stats.bootstrap`).

    Args:
        first, second: the two reviewers' verdicts on the same items, in one order.
    """
    if len(first) != len(second):
        raise ValueError("the reviewers' verdicts must be about the same items")
    if not first:
        return Agreement(np.nan, Interval(np.nan, np.nan, np.nan, 0))
    names = sorted({*first, *second})
    x, y = ((np.array(side)[:, None] == np.array(names)).astype(float) for side in (first, second))  # (n, k), one-hot
    cells = np.einsum("ij,ik->ijk", x, y)

    def statistic(counts: FloatArray) -> FloatArray:
        # A resample in which both said one and the same throughout agrees fully.
        return np.nan_to_num(_kappa(np.tensordot(counts, cells, axes=1)), nan=1.0)

    kappa = bootstrap(statistic, len(first))
    if len(names) == 1:
        kappa = replace(kappa, value=np.nan, low=np.nan, high=np.nan)
    return Agreement(float((x * y).sum()) / len(first), kappa)
