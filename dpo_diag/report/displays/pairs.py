"""The pairs that carry most of the change, with their texts and, where recorded, their tokens."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from dpo_diag.records import Run
from dpo_diag.report.displays.quadrants import NAMED
from dpo_diag.report.displays.tokens import draw_tokens, tokens_text
from dpo_diag.report.numbers import number, percent, signed
from dpo_diag.report.tables import table
from dpo_diag.report.text import clean

TEXT_CHARS = 1_500
NOTHING = Markup("")


def named_pairs(explanation: dict[str, Any]) -> list[str]:
    """The ids of the pairs that the report names: the explanation's first ten."""
    return [str(p.get("pair_id")) for p in (explanation.get("pairs") or [])[:NAMED]]


def pairs_frame(run: Run, explanation: dict[str, Any], changes: pd.DataFrame) -> pd.DataFrame:
    """The named pairs in order: the columns of `changes` plus prompt, chosen, rejected (null where unknown)."""
    ids = named_pairs(explanation)
    frame = pd.DataFrame({"pair_id": ids})
    if len(changes):
        frame = frame.merge(changes, on="pair_id", how="left")
    texts = run.texts[["pair_id", "prompt", "chosen", "rejected"]] if run.has("texts") else None
    if texts is None:
        return frame.assign(prompt=None, chosen=None, rejected=None)
    return frame.merge(texts, on="pair_id", how="left")


def draw_pairs(frame: pd.DataFrame, tokens: pd.DataFrame) -> Markup:
    """A table of the pairs, then one card each, the first open."""
    columns = [
        c for c in ("pair_id", "share_of_rise", "ce_from_chosen", "ce_to_chosen", "delta_chosen", "delta_rejected")
        if c in frame
    ]  # fmt: skip
    names = {
        "share_of_rise": "share of the rise", "ce_from_chosen": "chosen CE before", "ce_to_chosen": "after",
        "delta_chosen": "Δ chosen, nats", "delta_rejected": "Δ rejected, nats", "pair_id": "pair",
    }  # fmt: skip
    overview = table(
        frame[columns].assign(pair_id=[f"{i + 1}. {p}" for i, p in enumerate(frame["pair_id"])]),
        "the pairs that carry most of the change",
        names=names,
        formats={"share_of_rise": lambda v: percent(v, 1), "delta_chosen": signed, "delta_rejected": signed},
    )
    return overview + Markup("").join(_card(i, row, tokens) for i, row in enumerate(frame.to_dict("records")))


def _card(i: int, row: dict[str, Any], tokens: pd.DataFrame) -> Markup:
    prompt = row.get("prompt")
    title = clean(prompt, 110).replace("\n", " ") if isinstance(prompt, str) else "its text is not in the records"
    sides = []
    for side in ("chosen", "rejected"):
        of = tokens.loc[(tokens["pair_id"] == row["pair_id"]) & (tokens["side"] == side)]
        answer = row.get(side)
        text = (
            Markup("<pre>{}</pre>").format(escape(clean(answer, TEXT_CHARS)))
            if isinstance(answer, str) and not (len(of) and of["text"].notna().all())
            else Markup("")
        )
        said = tokens_text(of)
        if not said and f"delta_{side}" in row:
            said = f"{signed(row[f'delta_{side}'])} nats over {number(row.get(f'n_{side}'))} tokens"
        sides.append(
            Markup('<section class="side {0}"><h4>{0}</h4><p class="small">{1}</p>{2}{3}</section>').format(
                side, said, text, draw_tokens(of)
            )
        )
    shown = escape(clean(prompt, TEXT_CHARS)) if isinstance(prompt, str) else None
    full = NOTHING if shown is None else Markup('<pre class="asked">{}</pre>').format(shown)
    return Markup(
        '<details class="card"{}><summary><b class="rank">{}</b> <span>{}</span> <i>{}</i></summary>{}{}</details>'
    ).format(
        Markup(" open") if i == 0 else "",
        i + 1,
        escape(title),
        percent(row.get("share_of_rise"), 1),
        full,
        Markup("").join(sides),
    )
