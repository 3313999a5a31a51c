"""Bradley-Terry abilities of several checkpoints from pairwise scores, with a prior that keeps them finite."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dpo_diag.stats import Interval, normal_interval


def bradley_terry(scores: npt.ArrayLike, prior: float = 1.0, tolerance: float = 1e-10) -> list[Interval]:
    """Abilities by the MM algorithm (Hunter 2004, Annals of Statistics 32), centred on their mean.

    The prior is `prior` tied comparisons of everyone with one of ability 0: without it a checkpoint that won all its
    comparisons would be infinitely good. Intervals come from the curvature at the maximum (Laplace), after centring.

    Args:
        scores: (k, k); scores[i, j] is how often i was preferred to j, a tie counting half for both.
        prior: comparisons, > 0.

    Returns: one per checkpoint: log-odds (nats) of winning against one of average ability, 95 % interval, and the
        comparisons behind it; [] for none. Only differences between checkpoints that are connected by comparisons
        mean something: see `groups`.
    """
    s = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    k = s.shape[0] if s.size else 0
    if k == 0:
        return []
    if s.shape != (k, k) or (s < 0).any() or not np.isfinite(s).all() or prior <= 0:
        raise ValueError("scores must be a square matrix of finite counts, prior above 0")
    games = s + s.T
    np.fill_diagonal(games, 0.0)
    wins = s.sum(axis=1) - np.diag(s) + prior / 2
    strength = np.ones(k)
    for _ in range(100_000):
        met = (games / (strength[:, None] + strength[None, :])).sum(axis=1) + prior / (strength + 1.0)
        new = wins / met
        moved = float(np.abs(np.log(new / strength)).max())
        strength = new
        if moved < tolerance:
            break
    theta = np.log(strength)
    p = 1 / (1 + np.exp(-(theta[:, None] - theta[None, :])))
    weight = games * p * (1 - p)
    q = 1 / (1 + np.exp(-theta))
    information = np.diag(weight.sum(axis=1) + prior * q * (1 - q)) - weight
    centre = np.eye(k) - 1 / k
    spread = centre @ np.linalg.inv(information) @ centre
    error = np.sqrt(np.clip(np.diag(spread), 0.0, None))
    value = theta - theta.mean()
    return [
        normal_interval(float(v), float(e), round(n), "Laplace")
        for v, e, n in zip(value, error, games.sum(axis=1), strict=True)
    ]


def groups(scores: npt.ArrayLike) -> list[int]:
    """Number of the connected group of each checkpoint: those of different groups were never compared, even
    indirectly."""
    # Here: scipy.sparse takes a tenth of a second to import, and an explanation without reviews needs none of it.
    from scipy.sparse.csgraph import connected_components

    s = np.asarray(scores, dtype=np.float64)
    return [int(group) for group in connected_components(s + s.T > 0, directed=False)[1]]
