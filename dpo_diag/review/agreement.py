"""Do two reviewers agree beyond chance: Cohen's kappa over the items that both judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_diag.outputs.stats import SEED

DRAWS = 2_000
LEAST = 8
"""Items below which no interval is given."""


class Kappa(NamedTuple):
    """Share of equal verdicts, kappa, its 95 % interval, items; NaN where undefined."""

    agreement: float
    kappa: float
    low: float
    high: float
    n: int


def _kappa(table: np.ndarray) -> np.ndarray:
    """Kappa of tables of counts or shares, (..., k, k) -> (...); NaN where chance alone gives full agreement."""
    total = table.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(table, axis1=-2, axis2=-1) / total
        expected = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1) / total**2
        found: np.ndarray = np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)
    return found


def cohen_kappa(first: Sequence[str], second: Sequence[str], seed: int = SEED) -> Kappa:
    """Cohen (1960), unweighted; interval by resampling items, none below 8.

    Args:
        first, second: the two reviewers' verdicts on the same items, in one order.
    """
    if len(first) != len(second):
        raise ValueError("the reviewers' verdicts must be about the same items")
    n = len(first)
    if n == 0:
        return Kappa(math.nan, math.nan, math.nan, math.nan, 0)
    names = sorted({*first, *second})
    at = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(names), len(names)))
    for x, y in zip(first, second, strict=True):
        table[at[x], at[y]] += 1
    kappa = float(_kappa(table))
    low = high = math.nan
    if n >= LEAST and math.isfinite(kappa):
        draws = np.random.default_rng(seed).multinomial(n, table.ravel() / n, size=DRAWS).reshape(-1, *table.shape)
        resampled = _kappa(draws.astype(np.float64))
        # A resample in which both said one and the same throughout agrees fully.
        low, high = np.quantile(np.where(np.isnan(resampled), 1.0, resampled), (0.025, 0.975))
    return Kappa(float(np.trace(table)) / n, kappa, float(low), float(high), n)
