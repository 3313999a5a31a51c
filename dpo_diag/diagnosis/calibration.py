"""Whether a model's probabilities are what they say: of the tokens to which it gives 0.8, 0.8 should be right.

From token records. The outcome that a probability is about is whether the model's first choice stands there
(`is_top1`), its confidence is that choice's probability (`greedy_logp`). A target's own probability has no such curve:
wherever it is above 1/2 the target is the first choice, so that its bins would be right by construction. What the
targets' probabilities say of calibration is one number: their mean -log p, which of a calibrated model is its mean
entropy (Braverman et al., arXiv 1906.05664); both stand beside the curve.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.records import Run
from dpo_diag.text import records

BINS = 15
"""Bins of equal width, as Guo et al. (arXiv 1706.04599) have them."""
FloatArray = npt.NDArray[np.float64]


def reliability(confidence: npt.ArrayLike, hit: npt.ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """The reliability curve: one row a bin of (0, 1] that holds anything.

    Args:
        confidence: (tokens,) probability of the first choice, in 0 to 1.
        hit: (tokens,) whether the target is it.

    Returns:
        low, high: the bin, low left out and high in it (0 lies in the first); n: tokens; confidence, accuracy: means.
        Empty for no tokens.
    """
    p, right = np.asarray(confidence, dtype=np.float64), np.asarray(hit, dtype=np.float64)
    at = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    n = np.bincount(at, minlength=bins)
    held = np.flatnonzero(n)
    sums = (np.bincount(at, weights=values, minlength=bins)[held] / n[held] for values in (p, right))
    means = dict(zip(("confidence", "accuracy"), sums, strict=True))
    return pd.DataFrame({"low": held / bins, "high": (held + 1) / bins, "n": n[held], **means})


def expected_calibration_error(curve: pd.DataFrame) -> float:
    """ECE: mean over tokens of |accuracy - confidence| of their bin (arXiv 1706.04599); NaN for no tokens."""
    n = curve["n"].sum()
    return float((curve["n"] * (curve["accuracy"] - curve["confidence"]).abs()).sum() / n) if n else math.nan


def calibration(run: Run, split: str, step: Step | None, side: str | None = None) -> dict[str, Any]:
    """Of one set's recorded tokens at one step, or under the reference.

    Args:
        side: chosen, rejected or response; None: chosen where the run has pairs, else response.

    Returns:
        {"side", "n_tokens", "ece", "confidence", "accuracy", "ce", "entropy", "curve": rows of `reliability`}: nats per
        token for ce and entropy, null where entropies are not recorded; or {"not_applicable": reason}.
    """
    if not run.has("tokens"):
        return {"not_applicable": "no tokens are recorded (probes.record_tokens)"}
    columns = ["pair_id", "side", "position", "logp", "entropy", "is_top1", "greedy_logp"]
    if step == REFERENCE:
        rows = run.read("tokens", columns, splits=[split], roles=["ref"])
    else:
        rows = run.read("tokens", columns, steps=[int(step or 0)], splits=[split], roles=["policy"])
    rows = rows.drop_duplicates(["pair_id", "side", "position"], keep="last")
    sides = set(rows["side"].astype(str))
    side = side or next((name for name in ("chosen", "response") if name in sides), "chosen")
    rows = rows.loc[(rows["side"] == side) & rows["greedy_logp"].notna() & rows["is_top1"].notna()]
    if rows.empty:
        return {"not_applicable": "the log-prob of the first choice is not recorded (probes.extra greedy_logp)"}
    confidence = np.exp(rows["greedy_logp"].to_numpy(dtype=np.float64))
    hit = rows["is_top1"].to_numpy(dtype=np.float64)
    curve = reliability(confidence, hit)
    entropy = rows["entropy"].astype(float)
    return {
        "side": side, "n_tokens": len(rows), "ece": expected_calibration_error(curve),
        "confidence": float(confidence.mean()), "accuracy": float(hit.mean()), "ce": float(-rows["logp"].mean()),
        "entropy": None if entropy.isna().all() else float(entropy.mean()),
        "curve": records(curve),
    }  # fmt: skip
