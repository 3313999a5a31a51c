"""Changes of the chosen side's log-perplexities between two steps, for the pairs as they are and for resamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from dpo_diag.records import metrics
from dpo_diag.stats import FloatArray


def chosen_sums(frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """(sum_logp, tokens) of the chosen responses, shape (pairs,) each."""
    return frame["chosen_sum_logp"].to_numpy(), frame["chosen_n_tokens"].to_numpy()


def log_changes(before: pd.DataFrame, after: pd.DataFrame) -> Callable[[FloatArray], Mapping[str, FloatArray]]:
    """A function of (draws, pairs) counts: perplexity -> its log-change in each resample, shape (draws,).

    The length-weight term of ppl_token is its change less that of ppl_seq_geomean (DESIGN section 2, identity 2).
    """
    (s0, n0), (s1, n1) = chosen_sums(before), chosen_sums(after)
    ce0, ce1 = metrics.ce(s0, n0), metrics.ce(s1, n1)
    # Scaled by the largest exponent, so that a CE of 800 does not overflow.
    top = max(float(ce0.max()), float(ce1.max()))
    e0, e1 = np.exp(ce0 - top), np.exp(ce1 - top)

    def changes(counts: FloatArray) -> Mapping[str, FloatArray]:
        return {
            "ppl_token": counts @ s0 / (counts @ n0) - counts @ s1 / (counts @ n1),
            "ppl_seq_mean": np.log(counts @ e1) - np.log(counts @ e0),
            "ppl_seq_geomean": counts @ (ce1 - ce0) / counts.sum(axis=1),
        }

    return changes
