"""Where each pair went: the change of its chosen and of its rejected log-prob."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from dpo_diag.records import Run
from dpo_diag.records.metrics import ce, quadrants
from dpo_diag.report.numbers import number, percent, signed
from dpo_diag.report.scatter import MAX_DOTS, quadrant_scatter
from dpo_diag.report.svg import responsive
from dpo_diag.report.tables import behind, figure

NAMED = 10
"""Pairs that carry a number in the plot: those that the report shows one by one."""
NAMES = {
    "both_rose": "both rose",
    "chosen_rose": "wanted: chosen did not fall, rejected fell",
    "rejected_rose": "opposite: chosen fell, rejected did not",
    "both_fell": "both fell",
}


def changes_frame(run: Run, explanation: dict[str, Any]) -> pd.DataFrame:
    """One row per pair that both steps hold: pair_id, rank ("1".. for the named pairs, else ""), share_of_rise,
    quadrant, and per side delta_SIDE (nats), ce_from_SIDE, ce_to_SIDE (nats per token), n_SIDE (tokens).

    Empty where the run has no pair records of the explained split at both steps.
    """
    first, last, split = (explanation.get(k) for k in ("from_step", "to_step", "split"))
    columns = ["step", "pair_id", "side", "sum_logp", "n_tokens"]
    if first is None or last is None or not run.has("pairs"):
        return pd.DataFrame(columns=["pair_id", "rank", "share_of_rise", "quadrant"])
    rows = run.read("pairs", columns, steps=[first, last], splits=None if split is None else [split], roles=["policy"])
    rows = rows.drop_duplicates(["step", "pair_id", "side"], keep="last")
    table = rows.pivot(index="pair_id", columns=["side", "step"], values=["sum_logp", "n_tokens"])
    wanted = [("sum_logp", side, step) for side in ("chosen", "rejected") for step in (first, last)]
    if any(key not in table.columns for key in wanted):
        return pd.DataFrame(columns=["pair_id", "rank", "share_of_rise", "quadrant"])
    table = table.dropna(subset=wanted)
    out = pd.DataFrame({"pair_id": table.index.astype(str)})
    for side in ("chosen", "rejected"):
        before, after = (table["sum_logp", side, step].to_numpy(dtype=float) for step in (first, last))
        n = table["n_tokens", side, last].to_numpy(dtype=float)
        out[f"delta_{side}"] = after - before
        out[f"ce_from_{side}"], out[f"ce_to_{side}"] = ce(before, n), ce(after, n)
        out[f"n_{side}"] = n
    fell_c, fell_r = out["delta_chosen"] < 0, out["delta_rejected"] < 0
    out["quadrant"] = np.select(
        [fell_c & fell_r, fell_c, fell_r], ["both_fell", "rejected_rose", "chosen_rose"], "both_rose"
    )
    named = {
        str(p.get("pair_id")): (i + 1, p.get("share_of_rise"))
        for i, p in enumerate((explanation.get("pairs") or [])[:NAMED])
    }
    out["rank"] = [str(named[p][0]) if p in named else "" for p in out["pair_id"]]
    out["share_of_rise"] = [named[p][1] if p in named else None for p in out["pair_id"]]
    order = out["rank"].map(lambda r: int(r) if r else 10**9)
    return out.assign(_order=order).sort_values(["_order", "delta_chosen"], ignore_index=True).drop(columns="_order")


def draw_quadrants(changes: pd.DataFrame) -> Markup:
    """The scatter with its shares, and beneath it the shares as a table and the pairs as another."""
    shares = quadrants(changes["delta_chosen"], changes["delta_rejected"])._asdict()
    fell = float((changes["delta_chosen"] < 0).mean())
    text = (
        f"Of {len(changes)} pairs, {percent(shares['both_fell'])} lost log-prob on both sides and "
        f"{percent(fell)} lost it on the chosen answer; {percent(shares['chosen_rose'])} moved as wanted. "
        f"Medians: chosen {signed(changes['delta_chosen'].median())}, rejected "
        f"{signed(changes['delta_rejected'].median())} nats."
    )
    if len(changes) > MAX_DOTS:
        text += f" {MAX_DOTS} pairs are drawn, evenly chosen; the named ones are all there."
    plot = responsive(
        lambda w: quadrant_scatter(
            changes["delta_chosen"].to_numpy(dtype=float), changes["delta_rejected"].to_numpy(dtype=float),
            changes["rank"].tolist(), shares, width=w, description=text,
        )
    )  # fmt: skip
    summary = pd.DataFrame(
        [(NAMES[k], v, round(v * len(changes))) for k, v in shares.items()], columns=["quadrant", "share", "pairs"]
    )
    shown = changes[["rank", "pair_id", "delta_chosen", "delta_rejected", "quadrant"]]
    numbers = behind(summary, "shares of the quadrants", formats={"share": percent, "pairs": number}) + behind(
        shown, "change per pair", formats={"delta_chosen": signed, "delta_rejected": signed}, max_rows=100
    )
    return figure(plot, text, numbers)
