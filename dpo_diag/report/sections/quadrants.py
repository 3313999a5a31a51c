"""Where each pair went: the change of its chosen and of its rejected log-prob."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from dpo_diag.report.scatter import MAX_DOTS, dot_values, quadrant_scatter
from dpo_diag.report.section import SECTIONS, Context, NotApplicable, Section
from dpo_diag.report.svg import responsive
from dpo_diag.report.tables import table
from dpo_diag.report.text import one_line
from dpo_diag.text import number, percent, signed

NAMED = 10
"""Pairs that carry a number in the plot: those that the report shows one by one."""
NAMES = {
    "both_rose": "both rose",
    "chosen_rose": "wanted: chosen did not fall, rejected fell",
    "rejected_rose": "opposite: chosen fell, rejected did not",
    "both_fell": "both fell",
}
TEMPLATE = "{% call ui.figure(caption, [shares, pairs]) %}{{ plot }}{% endcall %}"


def build(context: Context) -> Mapping[str, Any]:
    """The scatter with its shares, and beneath it the shares as a table and the pairs as another."""
    counted = context.require("quadrants")
    changes = changes_frame(context)
    if changes.empty:
        raise NotApplicable("no pair has log-probs of both sides at both steps")
    shares = {name: float(counted[name]) for name in NAMES}
    chosen, rejected = (changes[side].to_numpy(dtype=float) for side in ("delta_chosen", "delta_rejected"))
    caption = (
        f"Of {len(changes)} pairs, {percent(shares['both_fell'])} lost log-prob on both sides and "
        f"{percent(shares['both_fell'] + shares['rejected_rose'])} lost it on the chosen answer; "
        f"{percent(shares['chosen_rose'])} moved as wanted. Medians: chosen "
        f"{signed(changes['delta_chosen'].median())}, rejected {signed(changes['delta_rejected'].median())} nats."
    )
    if len(changes) > MAX_DOTS:
        caption += f" {MAX_DOTS} pairs are drawn, evenly chosen; the named ones are all there."
    rows = [(NAMES[name], share, round(share * len(changes))) for name, share in shares.items()]
    ranks = changes["rank"].tolist()
    return {
        "plot": responsive(
            lambda w: quadrant_scatter(chosen, rejected, ranks, shares, width=w, description=caption),
            dot_values(chosen, rejected, ranks, _names(context, changes["pair_id"])),
        ),
        "caption": caption,
        "shares": table(
            pd.DataFrame(rows, columns=["quadrant", "share", "pairs"]), "shares of the quadrants",
            formats={"share": percent, "pairs": number},
        ),
        "pairs": table(
            changes, "change per pair", formats={"delta_chosen": signed, "delta_rejected": signed}, max_rows=100
        ),
    }  # fmt: skip


def _names(context: Context, pair_ids: Iterable[Any]) -> list[str]:
    """The beginning of each pair's chosen answer, or its id where that is not recorded."""
    texts = {str(pair["pair_id"]): pair.get("chosen_text") for pair in context.document["pairs"]}
    names = (one_line(texts.get(str(i)) or i, None) for i in pair_ids)
    return [name if len(name) <= 48 else f"{name[:47]}…" for name in names]


def changes_frame(context: Context) -> pd.DataFrame:
    """One row per pair whose change is known on both sides: rank ("1", "2", ... for the first `NAMED` pairs of the
    explanation, else ""), pair_id, delta_chosen, delta_rejected (nats), quadrant. Named pairs first, then those whose
    chosen answer lost most. Empty where the explanation holds no pairs."""
    columns = ["rank", "pair_id", "delta_chosen", "delta_rejected", "quadrant"]
    pairs = context.explanation.pairs
    if pairs.empty:
        return pd.DataFrame(columns=columns)
    known = pairs.loc[pairs["quadrant"] != ""]
    ids = [str(pair["pair_id"]) for pair in context.document["pairs"][:NAMED]]
    place = known["pair_id"].map({pair_id: i for i, pair_id in enumerate(ids)}).fillna(len(ids)).astype(int)
    frame = pd.DataFrame(
        {
            "rank": [str(i + 1) if i < len(ids) else "" for i in place],
            "pair_id": known["pair_id"],
            "delta_chosen": known["chosen_delta_logp"],
            "delta_rejected": known["rejected_delta_logp"],
            "quadrant": known["quadrant"],
        }
    )
    order = frame.assign(place=place).sort_values(["place", "delta_chosen"], kind="stable").index
    return frame.loc[order].reset_index(drop=True)


SECTIONS.add("quadrants", Section(
    title="Where each pair went", lead="One point per pair; the ringed numbers are the pairs below.",
    order=40, needs="quadrants", build=build, template=TEMPLATE,
))  # fmt: skip
