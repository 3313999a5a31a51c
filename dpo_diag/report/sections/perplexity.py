"""How each perplexity moved, and through which term: the exact splits of the explanation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.report.plots import Bar, BarRow, bar_chart
from dpo_diag.report.section import SECTIONS, Context, NotApplicable, Section
from dpo_diag.report.svg import responsive
from dpo_diag.report.tables import table
from dpo_diag.report.text import exact
from dpo_diag.text import arrow, signed

TERMS = {"dispersion": "dispersion", "length_weight": "length weight"}
TEMPLATE = """
{% call ui.figure(caption, [numbers]) %}
{{ plot }}<p class="key"><span class="swatch solid"></span> {{ "level: every answer alike"|say }}
<span class="swatch hatched"></span> {{ "dispersion (ppl_seq_mean) or length weight (ppl_token): how it spreads"|say }}
<span class="swatch stroke"></span> {{ "their sum"|say }}</p>
{% endcall %}
"""


def build(context: Context) -> Mapping[str, Any]:
    """One bar per perplexity: the level from 0, the other term on top of it, a stroke at their sum."""
    frame = perplexity_frame(context.require("perplexity"))
    if frame.empty:
        raise NotApplicable("the explanation has no split of a perplexity")
    rows, side_above = [], frame["side"][0]
    for row in frame.to_dict("records"):
        side, level, term = str(row["side"]), float(row["level"]), float(row["term_value"])
        bars = [Bar(0.0, level, side, f"level {signed(level)}")]
        if term:
            bars.append(Bar(level, level + term, f"{side} other", f"{row['term']} {signed(term)}"))
        change = f"{arrow(row['from'], row['to'])}  ({signed(row['dlog'])})"
        rows.append(BarRow(f"{side} {row['perplexity']}", tuple(bars), float(row["dlog"]), change, side != side_above))
        side_above = side
    sentence = perplexity_text(frame)
    axis = "change of log perplexity, nats per token"
    return {
        "plot": responsive(lambda width: bar_chart(rows, width=width, description=sentence, axis=axis)),
        "caption": sentence,
        "numbers": table(
            frame, "the perplexities' change by term",
            formats=dict.fromkeys(["from", "to", "dlog", "level", "term_value", "residual"], exact),
        ),
    }  # fmt: skip


def perplexity_frame(perplexity: Mapping[str, Any]) -> pd.DataFrame:
    """One row per (side, perplexity): from, to, dlog, level, term (its name), term_value, residual; nats per token.

    Empty where there is none; a perplexity that is not applicable is left out.
    """
    rows = []
    for side in ("chosen", "rejected"):
        for name, values in (perplexity.get(side) or {}).items():
            if not isinstance(values, dict) or values.get("dlog") is None:
                continue
            term = next((t for t in TERMS if t in values), "")
            split = (values["dlog"], values.get("level"), TERMS.get(term, ""), values.get(term, 0.0))
            rows.append((side, name, values.get("from"), values.get("to"), *split, values.get("residual")))
    columns = ["side", "perplexity", "from", "to", "dlog", "level", "term", "term_value", "residual"]
    return pd.DataFrame(rows, columns=columns)


def perplexity_text(frame: pd.DataFrame) -> str:
    """What the chosen side's perplexities did, in a sentence or two."""
    chosen = frame.loc[frame["side"] == "chosen"]
    if chosen.empty:
        return "Perplexities by level and spread."
    rose, fell = (chosen.loc[sign * chosen["dlog"] > 0, "perplexity"].tolist() for sign in (1, -1))
    if rose and fell:
        return (f"The sign depends on the aggregate: {', '.join(rose)} rose, {', '.join(fell)} fell. "
                "Compare levels before you call it better or worse.")  # fmt: skip
    if not (rose or fell):
        return "No chosen perplexity moved."
    verb = "rose" if rose else "fell"
    sentence = f"Every chosen perplexity {verb} (level {signed(chosen['level'].iloc[0])} nats per token)."
    spread = chosen.loc[chosen["term_value"].abs() > chosen["level"].abs(), "perplexity"].tolist()
    if spread:
        return f"{sentence} In {', '.join(spread)} most of it is spread (a few answers), not level."
    return f"{sentence} Most of it is level: the answers moved together."


SECTIONS.add("perplexity", Section(
    title="What moved each perplexity",
    lead="Log perplexity is a level plus a term for how it spreads over answers; both are exact.",
    order=30, needs="perplexity", build=build, template=TEMPLATE,
))  # fmt: skip
