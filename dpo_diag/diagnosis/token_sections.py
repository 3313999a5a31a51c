"""The explanation's sections that need more than sums: tokens by role, prompt dependence, destination, similarity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_diag.diagnosis.aligned import Selection
from dpo_diag.diagnosis.decompose.destination import destination, lost_mass
from dpo_diag.diagnosis.decompose.prompt_dependence import prompt_dependence
from dpo_diag.diagnosis.decompose.similarity import pair_features, rank_correlations
from dpo_diag.diagnosis.decompose.token_layout import TokenLayout, make_layout
from dpo_diag.diagnosis.decompose.tokens import follow_roles, summarise_tokens, token_change
from dpo_diag.records import Run
from dpo_diag.records.ches_file import CHES_FILE, read_ches
from dpo_diag.records.schemas import ROLES

NO_TOKENS = {"not_applicable": "the run holds no token rows of these pairs at both steps"}


def token_sections(run: Run, selection: Selection, thresholds: Mapping[str, float]) -> dict[str, Any]:
    """{"tokens", "prompt_dependence", "destination", "lost_mass", "similarity"}, each with its numbers or
    {"not_applicable": reason}."""
    if not len(selection.pairs):
        nothing = {"not_applicable": "no pair stands at both steps"}
        return dict.fromkeys(("tokens", "prompt_dependence", "destination", "lost_mass", "similarity"), nothing)
    change = token_change(run, selection)
    sections: dict[str, Any] = {"tokens": NO_TOKENS, "prompt_dependence": NO_TOKENS, "lost_mass": NO_TOKENS}
    if change is not None and change.usable.any():
        sections["tokens"] = {
            **summarise_tokens(change, selection),
            "along_the_run": follow_roles(run, selection, change),
        }
        sections["prompt_dependence"] = prompt_dependence(
            run, selection, change, thresholds["key_tokens.gain"], thresholds["key_tokens.floor"]
        )
        sections["lost_mass"] = lost_mass(run, selection, change)
    sections["destination"] = destination(selection)
    layout = change.layout if change is not None else _any_layout(run, selection)
    sections["similarity"] = _similarity(run, selection, layout)
    return sections


def _any_layout(run: Run, selection: Selection) -> TokenLayout | None:
    """The pairs' token ids from whichever rows hold them: they are the same at every step, so one step is enough."""
    if not run.has("tokens"):
        return None
    ids = list(selection.pairs["pair_id"].astype(str))
    for role in ROLES:
        for step in sorted({0, *selection.steps}):
            if (layout := make_layout(run, step, selection.split, ids, role)) is not None:
                return layout
    return None


def _similarity(run: Run, selection: Selection, layout: TokenLayout | None) -> dict[str, Any]:
    """Rank correlations of what was known before training with the change of chosen per token (or byte)."""
    features = pair_features(selection, layout)
    known = read_ches(run.path, selection.split)
    joined = features[["pair_id"]].astype(str).merge(known, on="pair_id", how="left")
    found = int(joined["ches"].notna().sum())
    section: dict[str, Any] = {"ches": {"pairs": found, "of": len(features)}}
    if found:
        features = features.assign(ches=joined["ches"].to_numpy(), ln_ches=joined["ln_ches"].to_numpy())
    else:
        why = f"the run's {CHES_FILE} holds none of these pairs" if len(known) else f"no {CHES_FILE} in the run"
        section["ches"] = {"not_applicable": f"{why} (dpo-score ches=true writes it)"}
    pairs = selection.pairs
    change = (pairs["chosen_sum_logp_1"] - pairs["chosen_sum_logp_0"]).to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_unit = change / features["n_chosen"].to_numpy(dtype=np.float64)
    numbers = features.drop(columns="pair_id").mean()
    return section | {
        "means": {str(k): float(v) for k, v in numbers.items()},
        "correlations_with_chosen_change": rank_correlations(features, per_unit),
    }
