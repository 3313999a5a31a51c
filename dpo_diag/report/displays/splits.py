"""How the loss and each perplexity moved, and through which part: the exact splits of the explanation."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from dpo_diag.report.numbers import number, signed
from dpo_diag.report.plots import Bar, BarRow, bar_chart
from dpo_diag.report.svg import responsive
from dpo_diag.report.tables import behind, figure

TERMS = {"level": "level", "dispersion": "dispersion", "length_weight": "length weight"}


def loss_split_frame(explanation: dict[str, Any]) -> pd.DataFrame:
    """Rows start, chosen side, rejected side, end with `from`, `to`, `change` (nats); empty where not applicable."""
    loss = explanation.get("loss") or {}
    if any(loss.get(k) is None for k in ("from", "chosen_part", "rejected_part")):
        return pd.DataFrame(columns=["part", "from", "to", "change"])
    start, middle = loss["from"], loss["from"] + loss["chosen_part"]
    end = middle + loss["rejected_part"]
    rows = [
        ("loss before", start, start, 0.0),
        ("through the chosen side", start, middle, loss["chosen_part"]),
        ("through the rejected side", middle, end, loss["rejected_part"]),
        ("loss after", loss["to"], loss["to"], loss["delta"]),
    ]
    return pd.DataFrame(rows, columns=["part", "from", "to", "change"])


def draw_loss_split(frame: pd.DataFrame, residual: float | None) -> Markup:
    """A waterfall from the loss before to the loss after. Its axis need not hold 0: positions count, not lengths."""
    kinds = ["loss", "chosen", "rejected", "loss"]
    rows = []
    for (part, start, end, change), kind in zip(frame.itertuples(index=False, name=None), kinds, strict=True):
        level = part in ("loss before", "loss after")
        bar = () if level else (Bar(start, end, kind, signed(change)),)
        rows.append(BarRow(part, bar, total=end if level else None, text=number(end) if level else signed(change)))
    chosen, rejected = float(frame["change"].iloc[1]), float(frame["change"].iloc[2])
    text = loss_split_text(chosen, rejected)
    plot = responsive(lambda w: bar_chart(rows, width=w, description=text, zero=False, axis="loss, nats per pair"))
    note = "" if residual is None else f" The parts add up to the change; what is left over: {number(residual, 2)}."
    numbers = behind(frame, "the loss's change by side", formats=dict.fromkeys(frame.columns[1:], _exact))
    return figure(plot, text + note, numbers)


def loss_split_text(chosen: float, rejected: float) -> str:
    """Which side moved the loss, in one sentence."""
    if chosen > 0 > rejected:
        return (
            f"The loss fell through the rejected side alone ({signed(rejected)}); the chosen side pushed it up "
            f"({signed(chosen)})." if chosen + rejected < 0 else
            f"The chosen side pushed the loss up ({signed(chosen)}) by more than the rejected side pulled it down "
            f"({signed(rejected)})."
        )  # fmt: skip
    if chosen < 0 < rejected:
        return f"The chosen side pulled the loss down ({signed(chosen)}), the rejected side up ({signed(rejected)})."
    total = chosen + rejected
    share = "" if total == 0 else f", {number(100 * chosen / total, 2)} % of it through the chosen side"
    verb = "fell" if total < 0 else "rose" if total > 0 else "did not move"
    return f"The loss {verb} by {number(abs(total), 3)}{share}." if total else "The loss did not move."


def perplexity_split_frame(explanation: dict[str, Any]) -> pd.DataFrame:
    """One row per (side, perplexity): from, to, dlog, level, term (its name), term_value, residual; nats per token.

    Empty where the explanation has no perplexity; a perplexity that is not applicable is left out.
    """
    rows = []
    for side in ("chosen", "rejected"):
        for name, values in ((explanation.get("perplexity") or {}).get(side) or {}).items():
            if not isinstance(values, dict) or values.get("dlog") is None:
                continue
            term = next((t for t in ("dispersion", "length_weight") if t in values), "")
            spread = values.get(term, 0.0) if term else 0.0
            ends = values.get("from"), values.get("to")
            found = (side, name, *ends, values["dlog"], values.get("level"), TERMS.get(term, ""), spread)
            rows.append((*found, values.get("residual")))
    columns = ["side", "perplexity", "from", "to", "dlog", "level", "term", "term_value", "residual"]
    return pd.DataFrame(rows, columns=columns)


def draw_perplexity_split(frame: pd.DataFrame) -> Markup:
    """One bar per perplexity: the level from 0, the other term on top of it, a stroke at their sum."""
    rows = []
    for i, row in enumerate(frame.to_dict("records")):
        level, term = float(row["level"]), float(row["term_value"])
        bars = [Bar(0.0, level, f"{row['side']}", f"level {signed(level)}")]
        if term:
            kind = f"{row['side']} other"
            bars.append(Bar(level, level + term, kind, f"{row['term']} {signed(term)}"))
        text = f"{number(row['from'])} → {number(row['to'])}  ({signed(row['dlog'])})"
        label = f"{row['side']} {row['perplexity']}"
        rows.append(BarRow(label, tuple(bars), float(row["dlog"]), text, i > 0 and row["side"] != frame["side"][i - 1]))
    text = perplexity_split_text(frame)
    axis = "change of log perplexity, nats per token"
    plot = responsive(lambda w: bar_chart(rows, width=w, description=text, axis=axis))
    key = Markup(
        '<p class="key"><span class="swatch solid"></span> level: every answer alike '
        '<span class="swatch hatched"></span> dispersion (ppl_seq_mean) or length weight (ppl_token): how it spreads '
        '<span class="swatch stroke"></span> their sum</p>'
    )
    numbers = behind(
        frame,
        "the perplexities' change by term",
        formats=dict.fromkeys(["from", "to", "dlog", "level", "term_value", "residual"], _exact),
    )
    return figure(plot + key, text, numbers)


def perplexity_split_text(frame: pd.DataFrame) -> str:
    """What the chosen side's perplexities did, in a sentence or two."""
    chosen = frame.loc[frame["side"] == "chosen"]
    if chosen.empty:
        return "Perplexities by level and spread."
    rose, fell = chosen.loc[chosen["dlog"] > 0], chosen.loc[chosen["dlog"] < 0]
    if len(rose) and len(fell):
        return (
            f"The sign depends on the aggregate: {', '.join(rose['perplexity'])} rose, {', '.join(fell['perplexity'])} "
            "fell. Compare levels before you call it better or worse."
        )
    first = chosen.iloc[0]
    verb = "rose" if len(rose) else "fell" if len(fell) else "did not move"
    size = chosen.assign(part=(chosen["term_value"].abs() > chosen["level"].abs()))
    carried = size.loc[size["part"], "perplexity"].tolist()
    tail = (
        f" In {', '.join(carried)} most of it is spread (a few answers), not level."
        if carried
        else " Most of it is level: the answers moved together."
        if len(rose) or len(fell)
        else ""
    )
    return f"Every chosen perplexity {verb} (level {signed(first['level'])} nats per token).{tail}"


def _exact(value: Any) -> str:
    return number(value, 6)
