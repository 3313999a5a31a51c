"""How alike were the two answers before training, and did that foretell what happened to chosen?

CHES (Razin et al. 2024, arXiv 2410.08847): with h_t the last layer's hidden states from the last prompt token on and
S = sum_t h_t over an answer, CHES = <S+, S-> - |S+|^2 and ln-CHES = <S+, S->/(n+ n-) - |S+|^2/n+^2; higher means more
displacement expected. Raw CHES tracks length, hence the length-normalised form, and hence correlations with length
partialled out. Who can load the reference computes CHES (`dpo-score ches=true`); here it is read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.decompose.alignment import edit_distance
from dpo_diag.diagnosis.token_rows import TokenLayout
from dpo_diag.records.schemas import CHES
from dpo_diag.records.side_tables import read_side_table
from dpo_diag.stats import rank_correlation, ranks, t_p_value

LEAST_PAIRS = 10
"""Below this many pairs no correlation is given."""


def similarity(aligned: Aligned) -> dict[str, Any]:
    """Rank correlations of what was known before training with the change of chosen per token (or byte).

    Returns: {"ches": {"pairs", "of"} or {"not_applicable"}, "means": feature -> mean,
        "correlations_with_chosen_change": of `rank_correlations`}.
    """
    features = pair_features(aligned)
    known = read_side_table(aligned.run.path, CHES, aligned.split)
    joined = features[["pair_id"]].astype(str).merge(known, on="pair_id", how="left")
    count = int(joined["ches"].notna().sum())
    section: dict[str, Any] = {"ches": {"pairs": count, "of": len(features)}}
    if count:
        features = features.assign(ches=joined["ches"].to_numpy(), ln_ches=joined["ln_ches"].to_numpy())
    else:
        why = f"the run's {CHES.file} holds none of these pairs" if len(known) else f"no {CHES.file} in the run"
        section["ches"] = {"not_applicable": f"{why} (dpo-score ches=true writes it)"}
    with np.errstate(divide="ignore", invalid="ignore"):
        per_unit = aligned.change("chosen") / features["n_chosen"].to_numpy(dtype=np.float64)
    means = features.drop(columns="pair_id").mean()
    return section | {
        "means": {str(k): float(v) for k, v in means.items()},
        "correlations_with_chosen_change": rank_correlations(features, per_unit),
    }


def pair_features(aligned: Aligned) -> pd.DataFrame:
    """What was known of each pair before training, one row a pair in the order of `Aligned.pairs`.

    Columns: `pair_id`, `n_chosen`, `length_gap` (chosen minus rejected, tokens or else bytes), `ref_logp_gap`
    (reference log-prob of chosen minus rejected, nats), `edit_distance` (of the token ids over the longer length, 0
    equal to 1 nothing shared; NaN without token rows).
    """
    pairs = aligned.pairs
    frame = pairs[["pair_id"]].copy()
    unit = "n_tokens" if pairs["chosen_n_tokens_1"].notna().any() else "n_bytes"
    frame["n_chosen"] = pairs[f"chosen_{unit}_1"]
    if "rejected" not in aligned.sides:
        return frame
    frame["length_gap"] = pairs[f"chosen_{unit}_1"] - pairs[f"rejected_{unit}_1"]
    frame["ref_logp_gap"] = pairs["chosen_ref"] - pairs["rejected_ref"]
    distances = {} if aligned.layout is None else edit_distances(aligned.layout)
    frame["edit_distance"] = [distances.get(str(p), math.nan) for p in pairs["pair_id"]]
    return frame


def edit_distances(layout: TokenLayout) -> dict[str, float]:
    """pair_id -> Levenshtein distance of the two answers' token ids over the longer length; 0 for two empty ones."""
    found = {}
    complete = layout.complete
    for i, pair in enumerate(layout.pair_ids):
        if not (complete[2 * i] and complete[2 * i + 1]):
            continue
        chosen, rejected = layout.tokens_of(2 * i), layout.tokens_of(2 * i + 1)
        found[pair] = edit_distance(chosen, rejected) / max(chosen.size, rejected.size, 1)
    return found


def partial_spearman(x: npt.ArrayLike, y: npt.ArrayLike, control: npt.ArrayLike) -> tuple[float, float]:
    """Rank correlation of x and y with the ranks of `control` partialled out of both, and its two-sided p (t with
    n - 3 degrees of freedom); (NaN, NaN) where a rank has no variance left or n < 4."""
    ranked = [ranks(v) for v in (x, y, control)]
    n = ranked[0].size
    if n < 4:
        return math.nan, math.nan
    design = np.column_stack([np.ones(n), ranked[2]])
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranked[:2]]
    scale = math.sqrt(float((left[0] ** 2).sum()) * float((left[1] ** 2).sum()))
    if scale < 1e-9 * n:
        return math.nan, math.nan
    rho = max(-1.0, min(1.0, float((left[0] * left[1]).sum()) / scale))
    if abs(rho) == 1.0:
        return rho, 0.0
    t = rho * math.sqrt((n - 3) / (1 - rho * rho))
    return rho, t_p_value(t, 1.0, n - 3)


def rank_correlations(features: pd.DataFrame, outcome: npt.ArrayLike, length: str = "n_chosen") -> list[dict[str, Any]]:
    """Did a feature foretell the outcome? One entry per feature column (`pair_id` and the length aside).

    Args:
        features: one row a pair; any columns, e.g. of `pair_features` joined with those of `ches`.
        outcome: (pairs,), e.g. the change of chosen log-prob per token.
        length: the column that is partialled out.

    Returns: [{"feature", "rho", "p", "rho_given_length", "p_given_length", "n"}]; rho None below LEAST_PAIRS known
        values or where either side is constant. Spearman throughout.
    """
    target = np.asarray(outcome, dtype=np.float64)
    found: list[dict[str, Any]] = []
    for name in features.columns:
        if name == "pair_id":
            continue
        values = features[name].to_numpy(dtype=np.float64)
        known = np.isfinite(values) & np.isfinite(target) & np.isfinite(features[length].to_numpy(dtype=np.float64))
        entry: dict[str, Any] = {"feature": str(name), "n": int(known.sum())}
        entry |= dict.fromkeys(("rho", "p", "rho_given_length", "p_given_length"))
        x, y = values[known], target[known]
        if x.size >= LEAST_PAIRS and np.ptp(x) > 0 and np.ptp(y) > 0:
            rho, p = rank_correlation(x, y)
            entry |= {"rho": rho, "p": p}
            if name != length:
                partial = partial_spearman(x, y, features[length].to_numpy(dtype=np.float64)[known])
                entry |= {"rho_given_length": partial[0], "p_given_length": partial[1]}
        found.append(entry)
    return found
