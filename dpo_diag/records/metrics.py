"""Every quantity that is derived from sums and counts, defined once.

A response i has `sum_logp` s_i (nats) over n_i tokens; ce_i = -s_i / n_i. All functions take one-dimensional arrays
over responses, compute in float64, and return NaN for an empty input (never 0 and never infinity: an empty set has no
perplexity). Sources: DESIGN section 2; `ppl_seq_mean` is H2O LLM Studio's "Perplexity" (h2o-llmstudio issue 594).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def _arrays(*values: npt.ArrayLike) -> tuple[FloatArray, ...]:
    arrays = tuple(np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in values)
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f"arrays over the same responses must have the same shape, got {[a.shape for a in arrays]}")
    return arrays


def ce(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> FloatArray:
    """Cross-entropy of each response, nats per token: -sum_logp / n; NaN where n is 0."""
    s, n = _arrays(sum_logp, n_tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(n > 0, -s / n, np.nan)


def log_mean_exp(x: npt.ArrayLike) -> float:
    """log mean exp(x), stable: +inf if any x is +inf, NaN if empty or any x is NaN."""
    (values,) = _arrays(x)
    if values.size == 0 or np.isnan(values).any():
        return math.nan
    top = float(values.max())
    if math.isinf(top):
        return top
    return top + math.log(float(np.exp(values - top).mean()))


def mean_ce(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> float:
    """The level: mean over responses of ce_i (nats per token); each response weighs the same. = log ppl_seq_geomean."""
    values = ce(sum_logp, n_tokens)
    return float(values.mean()) if values.size else math.nan


def log_ppl_token(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> float:
    """Cross-entropy over all tokens (nats per token), every token weighing the same: -sum s / sum n."""
    s, n = _arrays(sum_logp, n_tokens)
    total = n.sum()
    return float(-s.sum() / total) if total > 0 else math.nan


def log_ppl_seq_mean(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> float:
    """log of mean_i exp(ce_i)."""
    return log_mean_exp(ce(sum_logp, n_tokens))


def dispersion(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> float:
    """J = log mean exp(ce_i - mean ce) >= 0: what `ppl_seq_mean` holds beyond the level (Jensen)."""
    values = ce(sum_logp, n_tokens)
    if values.size == 0:
        return math.nan
    with np.errstate(invalid="ignore"):
        return log_mean_exp(values - values.mean())


def length_weight(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> float:
    """cov(n, ce) / mean(n), population covariance: what `ppl_token` holds beyond the level."""
    values = ce(sum_logp, n_tokens)
    (n,) = _arrays(n_tokens)
    if values.size == 0:
        return math.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(((n - n.mean()) * (values - values.mean())).mean() / n.mean())


def safe_exp(x: float) -> float:
    """exp(x); infinity instead of an OverflowError."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def ppl_token(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> float:
    """exp(sum -sum_logp / sum n)."""
    return safe_exp(log_ppl_token(sum_logp, n_tokens))


def ppl_seq_geomean(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> float:
    """exp(mean_i ce_i)."""
    return safe_exp(mean_ce(sum_logp, n_tokens))


def ppl_seq_mean(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike) -> float:
    """mean_i exp(ce_i); one hard response can carry it."""
    return safe_exp(log_ppl_seq_mean(sum_logp, n_tokens))


def bits_per_byte(sum_logp: npt.ArrayLike, n_bytes: npt.ArrayLike) -> float:
    """sum -sum_logp / (ln 2 * sum bytes): the only one comparable across tokenizers; NaN without bytes."""
    s, b = _arrays(sum_logp, n_bytes)
    total = b.sum()
    return float(-s.sum() / (math.log(2) * total)) if total > 0 else math.nan


PERPLEXITIES = {
    "ppl_token": log_ppl_token,
    "ppl_seq_mean": log_ppl_seq_mean,
    "ppl_seq_geomean": mean_ce,
}
"""name -> log of that perplexity, from (sum_logp, n_tokens)."""


class Quadrants(NamedTuple):
    """Shares of pairs by the signs of the changes of chosen and rejected log-prob; unchanged counts as not fallen."""

    both_rose: float
    chosen_rose: float
    rejected_rose: float
    both_fell: float


def quadrants(delta_chosen: npt.ArrayLike, delta_rejected: npt.ArrayLike) -> Quadrants:
    """Signs of (change of chosen, change of rejected) sum_logp (Razin et al. 2024, arXiv 2410.08847); NaN if empty.

    `chosen_rose` is the wanted quadrant (chosen did not fall, rejected fell), `rejected_rose` its opposite.
    """
    c, r = _arrays(delta_chosen, delta_rejected)
    if c.size == 0:
        return Quadrants(math.nan, math.nan, math.nan, math.nan)
    cf, rf = c < 0, r < 0
    return Quadrants(
        float((~cf & ~rf).mean()), float((~cf & rf).mean()), float((cf & ~rf).mean()), float((cf & rf).mean())
    )
