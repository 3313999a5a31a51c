"""Pair by pair: its part of everything, which way its two answers went, its margin; and all that from the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.decompose.loss import summarise
from dpo_diag.diagnosis.decompose.perplexity import pair_contributions, rank_pairs, split_perplexity
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics

NO_PAIR = {"not_applicable": "no pair is recorded at both steps"}
FIRST_COLUMNS = ["pair_id", "share_of_rise", "cumulative_share", "share_of_rises", "rank"]


def pair_table(aligned: Aligned, loss_rows: pd.DataFrame) -> pd.DataFrame:
    """One row per pair: its part of everything, ordered by its share of the rise of chosen `ppl_seq_mean`.

    Where nothing counts the answers' length, the pairs whose chosen answer lost most come first.

    Args:
        loss_rows: of `loss.split_losses`, or empty.
    """
    table = aligned.pairs[["pair_id"]].copy()
    for side in aligned.sides:
        table[f"{side}_delta_logp"] = aligned.change(side)
    for name in ("loss_from", "loss_to", "delta", "chosen_part", "rejected_part"):
        if name in loss_rows:
            table[name if name.startswith("loss") else f"loss_{name}"] = loss_rows[name]
    for side, arrays in aligned.responses.items():
        parts = pair_contributions(*arrays.args)
        parts.index = aligned.pairs.index[arrays.keep]
        names = {c: f"{side}_{c}" for c in parts.columns}
        if side == "chosen":
            names |= {"share_of_rise": "share_of_rise", "seq_mean": "seq_mean"}
        else:
            parts = parts[["ce_from", "ce_to", "seq_mean", "token"]]
        table = table.join(parts.rename(columns=names))
    if "share_of_rise" not in table:
        return table.sort_values("chosen_delta_logp", kind="stable", ignore_index=True)
    ordered = rank_pairs(table).rename(columns={"seq_mean": "chosen_seq_mean"})
    return ordered[[*FIRST_COLUMNS, *[c for c in ordered.columns if c not in FIRST_COLUMNS]]]


def quadrants(aligned: Aligned) -> dict[str, Any]:
    """Shares of pairs by the signs of both changes, with how many and both means; or {"not_applicable": reason}."""
    if not len(aligned.pairs):
        return NO_PAIR
    if len(aligned.sides) < 2:
        return {"not_applicable": "only one side is recorded"}
    chosen, rejected = aligned.change("chosen"), aligned.change("rejected")
    finite = np.isfinite(chosen) & np.isfinite(rejected)
    if not finite.any():
        return {"not_applicable": "no pair has finite log-probs at both steps"}
    chosen, rejected = chosen[finite], rejected[finite]
    return {
        **metrics.quadrants(chosen, rejected)._asdict(), "n_pairs": int(finite.sum()),
        "mean_delta_chosen": float(chosen.mean()), "mean_delta_rejected": float(rejected.mean()),
    }  # fmt: skip


def margins(pairs: pd.DataFrame, intervals: PairIntervals) -> dict[str, Any]:
    """Mean of a - b (nats, before beta) and the share of pairs that prefer chosen (a > b), at both steps."""
    known = pairs.loc[np.isfinite(pairs[["a0", "b0", "a1", "b1"]].to_numpy(dtype=np.float64)).all(axis=1)]
    if not len(known):
        return {"not_applicable": "the records hold no finite reference log-probs"}
    before, after = known["a0"] - known["b0"], known["a1"] - known["b1"]
    return {
        "from": float(before.mean()), "to": float(after.mean()), "delta": float((after - before).mean()),
        "interval": intervals.mean(after - before, known["pair_id"]).bounds,
        "accuracy_from": float((before > 0).mean()), "accuracy_to": float((after > 0).mean()), "n_pairs": len(known),
    }  # fmt: skip


def from_reference(aligned: Aligned, spec: LossSpec | None) -> dict[str, Any]:
    """The same split from the reference to `to_step`: loss, perplexities, quadrants."""
    if not aligned.has_reference:
        return {"not_applicable": "the records hold no reference log-probs"}
    against = aligned.against_reference()
    if not len(against.pairs):
        return {"not_applicable": "no pair has the reference's log-probs"}
    result: dict[str, Any] = {"n_pairs": len(against.pairs)}
    if spec is not None:
        result["loss"] = summarise(spec, against.pairs)[0]
    if against.unit is not None:
        result["perplexity"] = {s: split_perplexity(*a.args) for s, a in against.responses.items()}
    return result | {"quadrants": quadrants(against)}
