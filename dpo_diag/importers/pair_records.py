"""Wide rows of per-pair numbers as rows of the tables `pairs` and `history`: what every source of pairs ends in."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.parsed import Parsed
from dpo_diag.records.schemas import SIDES

COUNTS = ("n_tokens", "n_bytes", "n_truncated")
MEASURES = (*COUNTS, "entropy_sum", "greedy_logp_sum", "top1", "top5")
"""What a row can hold of each side beside its sum of log-probs."""


def fill_bytes(frame: pd.DataFrame, texts: Mapping[tuple[str, str], Mapping[str, str]], parsed: Parsed) -> None:
    """UTF-8 bytes of the response text where the table has none."""
    for side in SIDES:
        column = f"{side}_n_bytes"
        sizes = {key: float(len(t[side].encode("utf-8", "replace"))) for key, t in texts.items() if side in t}
        if not sizes:
            continue
        counted = pd.Series([sizes.get(key, math.nan) for key in zip(frame["split"], frame["pair_id"], strict=True)])
        if column in frame:
            frame[column] = frame[column].fillna(counted)
        else:
            frame[column] = counted
            parsed.details["n_bytes_from"] = "UTF-8 bytes of the response texts"


def pair_records(frame: pd.DataFrame, parsed: Parsed) -> pd.DataFrame:
    """Wide rows (step, split, pair_id, chosen_*, rejected_*, ref_*) to rows of the `pairs` table, reference rows once.

    Without ref columns the rows of step 0 stand for the reference, if there are any; `details` names what was used.
    """
    parts: list[pd.DataFrame] = []
    base = frame[["step", "split", "pair_id"]]
    for side in SIDES:
        part = base.assign(role="policy", side=side, sum_logp=frame[f"{side}_sum_logp"])
        for measure in MEASURES:
            if f"{side}_{measure}" in frame:
                part[measure] = frame[f"{side}_{measure}"]
        parts.append(part)
    has_ref = [s for s in SIDES if f"ref_{s}_sum_logp" in frame and frame[f"ref_{s}_sum_logp"].notna().any()]
    if len(has_ref) == len(SIDES):
        parsed.details["reference_from"] = "the table's ref_*_sum_logp"
        for side in SIDES:
            column = f"ref_{side}_sum_logp"
            known = frame[frame[column].notna()]
            grouped = known.groupby(["split", "pair_id"], sort=False, observed=True)[column]
            if float((grouped.max() - grouped.min()).abs().max()) > 1e-3:
                parsed.notes.append(f"{column} changes between steps: the first value of each pair is taken")
            first = known.drop_duplicates(["split", "pair_id"])
            part = first[["step", "split", "pair_id"]].assign(role="ref", side=side, sum_logp=first[column])
            if f"{side}_n_tokens" in first:
                part["n_tokens"] = first[f"{side}_n_tokens"]
            parts.append(part)
    elif (frame["step"] == 0).any():
        parsed.details["reference_from"] = "the rows of step 0"
        parts += [p[p["step"] == 0].assign(role="ref") for p in parts]
    else:
        parsed.notes.append("no reference: neither ref_*_sum_logp nor rows of step 0")
    rows = pd.concat(parts, ignore_index=True)
    for column in COUNTS:
        if column in rows:
            rows[column] = rows[column].astype("Int64")
    positive = int((rows["sum_logp"] > 1e-6).sum())
    if positive > 0.5 * len(rows):
        # Negative log-likelihoods under the wrong name would turn every finding upside down.
        raise DiagError(
            "log-probs are above 0", where="*_sum_logp", got=f"{positive} of {len(rows)} values",
            expected="sums of log-probs, 0 or less", hint="negate the column if it holds negative log-likelihoods",
        )  # fmt: skip
    if positive:
        parsed.notes.append(f"{positive} log-probs are positive: not sums of log-probs?")
    return rows


def score_history(frame: pd.DataFrame) -> pd.DataFrame | None:
    """`score/NAME` columns as history: one value a step if it never varies within one, else the mean over pairs (n)."""
    parts = []
    for column in [c for c in frame.columns if str(c).startswith("score/")]:
        known = frame[frame[column].notna()]
        if known.empty:
            continue
        grouped = known.groupby(["step", "split"], sort=True, observed=True)[column]
        varies = bool((grouped.max() - grouped.min()).abs().gt(1e-12).any())
        part = grouped.mean().rename("value").reset_index()
        part["weight"] = grouped.size().to_numpy(dtype=float) if varies else math.nan
        parts.append(part.assign(name=column))
    return pd.concat(parts, ignore_index=True) if parts else None
