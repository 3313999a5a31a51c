"""The explanation's sections that need more than sums: tokens by role, prompt dependence, destination, similarity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.decompose.destination import destination, lost_mass
from dpo_diag.diagnosis.decompose.prompt_dependence import prompt_dependence
from dpo_diag.diagnosis.decompose.similarity import pair_features, rank_correlations
from dpo_diag.diagnosis.decompose.tokens import follow_roles, summarise_tokens
from dpo_diag.records.ches_file import CHES_FILE, read_ches

NO_TOKENS = {"not_applicable": "the run holds no token rows of these pairs at both steps"}


def token_sections(aligned: Aligned, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """{"tokens", "prompt_dependence", "destination", "lost_mass", "similarity"}, each with its numbers or
    {"not_applicable": reason}."""
    if not len(aligned.pairs):
        nothing = {"not_applicable": "no pair stands at both steps"}
        return dict.fromkeys(("tokens", "prompt_dependence", "destination", "lost_mass", "similarity"), nothing)
    change = aligned.tokens
    sections: dict[str, Any] = {"tokens": NO_TOKENS, "prompt_dependence": NO_TOKENS, "lost_mass": NO_TOKENS}
    if change is not None and change.usable.any():
        sections["tokens"] = {**summarise_tokens(aligned, change), "along_the_run": follow_roles(aligned, change)}
        sections["prompt_dependence"] = prompt_dependence(
            aligned, change, thresholds["key_tokens.gain"], thresholds["key_tokens.floor"]
        )
        sections["lost_mass"] = lost_mass(aligned, change)
    sections["destination"] = destination(aligned)
    sections["similarity"] = _similarity(aligned)
    return sections


def _similarity(aligned: Aligned) -> dict[str, Any]:
    """Rank correlations of what was known before training with the change of chosen per token (or byte)."""
    features = pair_features(aligned)
    known = read_ches(aligned.run.path, aligned.split)
    joined = features[["pair_id"]].astype(str).merge(known, on="pair_id", how="left")
    found = int(joined["ches"].notna().sum())
    section: dict[str, Any] = {"ches": {"pairs": found, "of": len(features)}}
    if found:
        features = features.assign(ches=joined["ches"].to_numpy(), ln_ches=joined["ln_ches"].to_numpy())
    else:
        why = f"the run's {CHES_FILE} holds none of these pairs" if len(known) else f"no {CHES_FILE} in the run"
        section["ches"] = {"not_applicable": f"{why} (dpo-score ches=true writes it)"}
    change = aligned.change("chosen")
    with np.errstate(divide="ignore", invalid="ignore"):
        per_unit = change / features["n_chosen"].to_numpy(dtype=np.float64)
    numbers = features.drop(columns="pair_id").mean()
    return section | {
        "means": {str(k): float(v) for k, v in numbers.items()},
        "correlations_with_chosen_change": rank_correlations(features, per_unit),
    }
