"""The explanation of a run that holds pairs: loss, perplexities, pairs, quadrants, trajectory, verdict, remedies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis import remedies, uncertainty, verdict
from dpo_diag.diagnosis.aligned import Aligned, SideArrays
from dpo_diag.diagnosis.common_sections import head, judged_evidence, perplexity_signs, run_all_checks
from dpo_diag.diagnosis.decompose import loss_split, perplexity_split, trajectory
from dpo_diag.diagnosis.pair_rows import REFERENCE
from dpo_diag.diagnosis.strict_json import records
from dpo_diag.diagnosis.token_sections import token_sections
from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics

PAIRS_SHOWN = 2000
REMEDIED = ("likelihood_displacement", "sign_depends_on_aggregator", "late_divergence", "loss_unknown")
"""Verdict labels that the remedies for falling likelihood answer; others only where something measured got worse."""


def explain_pairs(aligned: Aligned, values: Mapping[str, float]) -> dict[str, Any]:
    """The document of the aligned pairs; `values`: every threshold."""
    run, pairs = aligned.run, aligned.pairs
    spec, why_not = loss_split.loss_spec(run)
    document = head(run, aligned.from_step, aligned.to_step, aligned.split, len(pairs))
    loss, loss_rows = _loss(aligned, spec, why_not)
    unit, unit_note = aligned.unit_and_note
    notes = [*aligned.notes, *([unit_note] if unit_note and unit else [])]
    sides = aligned.responses
    table = _pair_table(pairs, sides, loss_rows)
    path = trajectory.follow(aligned, spec) if len(pairs) else None
    turns = trajectory.turning_points(path, values["turning_point.least_dlog"]) if path else []
    perplexity = _perplexity(sides) if sides else {"not_applicable": unit_note or "no response can be measured"}
    checks = run_all_checks(run, aligned.from_step, aligned.to_step, aligned.split, values)
    evidence = judged_evidence(run, aligned.from_step, aligned.to_step, values)
    quadrants, chosen_sign = _quadrants(aligned)
    concentration = perplexity_split.concentration(table) if "share_of_rise" in table else None
    document |= {
        "unit": unit,
        "coverage": aligned.coverage,
        "notes": notes,
        "loss": loss,
        "perplexity": perplexity,
        "bits_per_byte": {s: aligned.bits_per_byte(s) for s in aligned.sides} if len(pairs) else {},
        "quadrants": quadrants,
        "margins": _margins(pairs),
        "against_reference": _against_reference(aligned, spec),
        "concentration": concentration,
        "turning_points": turns,
        "pairs": records(table.head(PAIRS_SHOWN)),
        "pairs_not_shown": max(0, len(table) - PAIRS_SHOWN),
        "trajectory": records(path.steps) if path is not None else [],
        "along_the_run": path.summary if path is not None else {},
        "checks": checks,
        "evidence": [m.document(values) for m, _ in evidence],
        "thresholds": dict(values),
    }
    facts = verdict.Facts(
        loss=_loss_sign(loss),
        perplexity=perplexity_signs(perplexity, values["verdict.least_dlog"]),
        chosen=chosen_sign,
        turning_points=turns,
        evidence=evidence,
        speaking=frozenset(c["code"] for c in checks if c["outcome"] == "speaks"),
        n_pairs=len(pairs),
        has_intervals=len(pairs) >= uncertainty.MINIMUM_PAIRS,
    )
    decision = verdict.decide(facts)
    document["verdict"] = decision.document()
    document |= token_sections(aligned, values)
    document["remedies"] = _remedies(spec, decision, sides, pairs, turns, concentration)
    return document


def _loss(aligned: Aligned, spec: LossSpec | None, why_not: str | None) -> tuple[dict[str, Any], pd.DataFrame]:
    if spec is None:
        return {"not_applicable": why_not}, pd.DataFrame()
    summary, rows = loss_split.summarise(spec, aligned.pairs)
    if "not_applicable" in summary:
        return summary, rows
    summary["interval"] = uncertainty.mean_interval(rows["delta"])
    history = aligned.run.history
    logged = history.loc[
        (history["name"] == "loss") & (history["split"] == aligned.split), ["step", "value"]
    ].set_index("step")["value"]
    for key, step in (("logged_from", aligned.from_step), ("logged_to", aligned.to_step)):
        summary[key] = float(logged[step]) if step in logged.index else None
    return summary, rows


def _loss_sign(loss: dict[str, Any]) -> int | None:
    return None if "not_applicable" in loss else uncertainty.sign(loss["delta"], loss.get("interval"))


def _perplexity(sides: dict[str, SideArrays]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for side, arrays in sides.items():
        section: dict[str, Any] = dict(perplexity_split.split_perplexity(*arrays.args))
        for name, bounds in uncertainty.perplexity_intervals(arrays).items():
            section[name] = {**section[name], "interval": bounds}
        if arrays.excluded:
            section["excluded"] = arrays.excluded
        result[side] = section
    return result


def _pair_table(pairs: pd.DataFrame, sides: dict[str, SideArrays], loss_rows: pd.DataFrame) -> pd.DataFrame:
    """One row per pair: its part of everything, ordered by its share of the rise of chosen `ppl_seq_mean`."""
    table = pairs[["pair_id"]].copy()
    for side in ("chosen", "rejected"):
        if f"{side}_sum_logp_0" in pairs:
            table[f"{side}_delta_logp"] = pairs[f"{side}_sum_logp_1"] - pairs[f"{side}_sum_logp_0"]
    for name in ("loss_from", "loss_to", "delta", "chosen_part", "rejected_part"):
        if name in loss_rows:
            table[name if name.startswith("loss") else f"loss_{name}"] = loss_rows[name]
    for side, arrays in sides.items():
        parts = perplexity_split.pair_contributions(*arrays.args)
        parts.index = pairs.index[arrays.keep]
        names = {c: f"{side}_{c}" for c in parts.columns}
        if side == "chosen":
            names |= {"share_of_rise": "share_of_rise", "seq_mean": "seq_mean"}
        else:
            parts = parts[["ce_from", "ce_to", "seq_mean", "token"]]
        table = table.join(parts.rename(columns=names))
    if "share_of_rise" not in table:
        # Nothing counts the answers' length: the pairs whose chosen answer lost most stand first.
        return table.sort_values("chosen_delta_logp", kind="stable", ignore_index=True)
    ordered = perplexity_split.pair_table(table).rename(columns={"seq_mean": "chosen_seq_mean"})
    first = ["pair_id", "share_of_rise", "cumulative_share", "share_of_rises", "rank"]
    return ordered[[*first, *[c for c in ordered.columns if c not in first]]]


def _quadrants(aligned: Aligned) -> tuple[dict[str, Any], int | None]:
    """Shares of pairs by sign of both changes, with how many; and the sign of the mean change of the chosen side."""
    if not len(aligned.pairs):
        return {"not_applicable": "no pair stands at both steps"}, None
    changes = {s: aligned.change(s) for s in aligned.sides}
    finite = np.logical_and.reduce([np.isfinite(c) for c in changes.values()])
    chosen = changes["chosen"][finite] if "chosen" in changes else np.zeros(0)
    sign = uncertainty.sign(float(chosen.mean()), uncertainty.mean_interval(chosen)) if chosen.size else None
    if len(changes) < 2:
        return {"not_applicable": "only one side is recorded"}, sign
    if not finite.any():
        return {"not_applicable": "no pair has finite log-probs at both steps"}, sign
    rejected = changes["rejected"][finite]
    shares = metrics.quadrants(chosen, rejected)._asdict()
    means_of = {"mean_delta_chosen": float(chosen.mean()), "mean_delta_rejected": float(rejected.mean())}
    return {**shares, "n_pairs": int(finite.sum()), **means_of}, sign


def _margins(pairs: pd.DataFrame) -> dict[str, Any]:
    """Mean of a - b (nats, before beta) and the share of pairs that prefer chosen (a > b), at both steps."""
    known = pairs.loc[np.isfinite(pairs[["a0", "b0", "a1", "b1"]].to_numpy(dtype=np.float64)).all(axis=1)]
    if not len(known):
        return {"not_applicable": "the records hold no finite reference log-probs"}
    before, after = known["a0"] - known["b0"], known["a1"] - known["b1"]
    return {
        "from": float(before.mean()), "to": float(after.mean()), "delta": float((after - before).mean()),
        "interval": uncertainty.mean_interval(after - before),
        "accuracy_from": float((before > 0).mean()), "accuracy_to": float((after > 0).mean()), "n_pairs": len(known),
    }  # fmt: skip


def _against_reference(aligned: Aligned, spec: LossSpec | None) -> dict[str, Any]:
    """The same split from the reference to `to_step`: loss, chosen perplexities, quadrants."""
    if aligned.from_step == REFERENCE:
        return {"same_as": "from_step"}
    if not aligned.has_reference:
        return {"not_applicable": "the records hold no reference log-probs"}
    against = aligned.against_reference()
    result: dict[str, Any] = {"n_pairs": len(against.pairs)}
    if not len(against.pairs):
        return {"not_applicable": "no pair has the reference's log-probs"}
    if spec is not None:
        result["loss"] = loss_split.summarise(spec, against.pairs)[0]
    if against.unit is not None:
        result["perplexity"] = {s: perplexity_split.split_perplexity(*a.args) for s, a in against.responses.items()}
    result["quadrants"] = _quadrants(against)[0]
    return result


def _remedies(
    spec: LossSpec | None,
    decision: verdict.Verdict,
    sides: dict[str, SideArrays],
    pairs: pd.DataFrame,
    turns: list[dict[str, Any]],
    concentration: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    if decision.label not in REMEDIED and decision.harm != "harmful":
        return []
    chosen = sides.get("chosen")
    by_token = chosen is not None and chosen.unit == "token"
    a, b = (pairs[c].to_numpy(dtype=np.float64) for c in ("a1", "b1"))
    known = np.isfinite(a) & np.isfinite(b)
    numbers = {
        "turning_point": max(turns, key=lambda t: float(t["worse_by"]), default=None),
        "a_below_reference": float((a[known] < 0).mean()) if known.any() else None,
        "margin": float(spec.beta * (a - b)[known].mean()) if spec is not None and known.any() else None,
        "concentration": concentration,
    }
    n = chosen.n_from if by_token and chosen is not None else np.zeros(0)
    s = chosen.sum_from if by_token and chosen is not None else np.zeros(0)
    return remedies.suggest(spec, n, s, numbers)
