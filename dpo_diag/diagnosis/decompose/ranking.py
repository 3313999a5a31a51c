"""How often the chosen answer outranks the rejected one by its own log-prob, under each normalisation by length.

A sum favours the shorter answer, a mean the longer one; between them lies sum / n^alpha: 0 the sum, 1 the mean, 0.6
what Wu et al. (GNMT, arXiv 1609.08144) found to serve a beam search. Their own formula counts five tokens more:
sum / ((5 + n) / 6)^alpha. No reference is looked at: this is how a model ranks, not how training moved it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.decompose.pairs import NO_PAIR

ALPHAS = (0.0, 0.6, 1.0)
GNMT_ALPHA = 0.6
FloatArray = npt.NDArray[np.float64]


def length_normalised(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike, alpha: float) -> FloatArray:
    """sum_logp / n^alpha, nats: 0 the sum, 1 the mean over tokens. NaN where n is 0 or unknown."""
    s, n = np.asarray(sum_logp, dtype=np.float64), np.asarray(n_tokens, dtype=np.float64)
    return np.asarray(s / np.where(n > 0, n, np.nan) ** alpha) if alpha else np.where(n > 0, s, np.nan)


def gnmt_score(sum_logp: npt.ArrayLike, n_tokens: npt.ArrayLike, alpha: float = GNMT_ALPHA) -> FloatArray:
    """sum_logp / ((5 + n) / 6)^alpha, equation 14 of arXiv 1609.08144 without its coverage; NaN where n is 0."""
    s, n = np.asarray(sum_logp, dtype=np.float64), np.asarray(n_tokens, dtype=np.float64)
    return np.asarray(s / ((5 + np.where(n > 0, n, np.nan)) / 6) ** alpha)


def ranking(aligned: Aligned) -> dict[str, Any]:
    """Share of pairs whose chosen answer scores above the rejected one (a tie does not), at both steps.

    Returns:
        {"n_pairs", "from": {"0", "0.6", "1", "gnmt": share}, "to": likewise} over the pairs whose log-probs are finite
        and whose lengths are known at both steps; or {"not_applicable": reason}.
    """
    if not len(aligned.pairs):
        return NO_PAIR
    if len(aligned.sides) < 2:
        return {"not_applicable": "only one side is recorded"}
    names = [f"{side}_{what}" for side in aligned.sides for what in ("sum_logp_0", "sum_logp_1", "n_tokens_1")]
    values = aligned.pairs[names].to_numpy(dtype=np.float64)
    known = aligned.pairs[np.isfinite(values).all(axis=1)]
    if not len(known):
        return {"not_applicable": "no pair has finite log-probs and known lengths on both sides"}
    ends = {}
    for end, w in (("from", 0), ("to", 1)):
        sides = [(known[f"{side}_sum_logp_{w}"], known[f"{side}_n_tokens_1"]) for side in ("chosen", "rejected")]
        scores = {f"{alpha:g}": [length_normalised(*side, alpha) for side in sides] for alpha in ALPHAS}
        scores["gnmt"] = [gnmt_score(*side) for side in sides]
        ends[end] = {name: float((chosen > rejected).mean()) for name, (chosen, rejected) in scores.items()}
    return {"n_pairs": len(known), **ends}
