"""How the loss moved, and through which side: the exact split of the explanation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.report.plots import Bar, BarRow, bar_chart
from dpo_diag.report.section import SECTIONS, Context, NotApplicable, Section
from dpo_diag.report.svg import responsive
from dpo_diag.report.tables import table
from dpo_diag.report.text import exact
from dpo_diag.text import number, signed

TEMPLATE = "{% call ui.figure(caption, [numbers]) %}{{ plot }}{% endcall %}"


def build(context: Context) -> Mapping[str, Any]:
    """A waterfall from the loss before to the loss after. Its axis need not hold 0: positions count, not lengths."""
    frame = loss_frame(context.require("loss"))
    if frame.empty:
        raise NotApplicable("the explanation has no split of the loss")
    rows = []
    for part, start, end, change in frame.itertuples(index=False, name=None):
        kind = next((side for side in ("chosen", "rejected") if side in part), "loss")
        moved = kind != "loss"
        bars = (Bar(start, end, kind, signed(change)),) if moved else ()
        rows.append(BarRow(part, bars, None if moved else end, signed(change) if moved else number(end)))
    sentence = loss_text(*frame["change"].iloc[1:3].astype(float))
    residual = context.document["loss"].get("residual")
    rest = "" if residual is None else f" The parts add up to the change; what is left over: {number(residual, 2)}."
    axis = "loss, nats per pair"
    return {
        "plot": responsive(lambda w: bar_chart(rows, width=w, description=sentence, zero=False, axis=axis)),
        "caption": sentence + rest,
        "numbers": table(frame, "the loss's change by side", formats=dict.fromkeys(frame.columns[1:], exact)),
    }  # fmt: skip


def loss_frame(loss: Mapping[str, Any]) -> pd.DataFrame:
    """Rows start, chosen side, rejected side, end with `from`, `to`, `change` (nats); empty where not applicable."""
    columns = ["part", "from", "to", "change"]
    if any(loss.get(k) is None for k in ("from", "chosen_part", "rejected_part")):
        return pd.DataFrame(columns=columns)
    start, middle = loss["from"], loss["from"] + loss["chosen_part"]
    rows = [
        ("loss before", start, start, 0.0),
        ("through the chosen side", start, middle, loss["chosen_part"]),
        ("through the rejected side", middle, middle + loss["rejected_part"], loss["rejected_part"]),
        *_of_coefficients(loss, middle + loss["rejected_part"]),
        ("loss after", loss["to"], loss["to"], loss["delta"]),
    ]
    return pd.DataFrame(rows, columns=columns)


def _of_coefficients(loss: Mapping[str, Any], start: float) -> list[tuple[str, float, float, float]]:
    part = loss.get("coefficient_part")
    return [] if part is None else [("through its coefficients", start, start + part, part)]


def loss_text(chosen: float, rejected: float) -> str:
    """Which side moved the loss, in one sentence."""
    total = chosen + rejected
    if chosen > 0 > rejected and total < 0:
        return (f"The loss fell through the rejected side alone ({signed(rejected)}); the chosen side pushed it up "
                f"({signed(chosen)}).")  # fmt: skip
    if chosen > 0 > rejected:
        return (f"The chosen side pushed the loss up ({signed(chosen)}) by more than the rejected side pulled it down "
                f"({signed(rejected)}).")  # fmt: skip
    if chosen < 0 < rejected:
        return f"The chosen side pulled the loss down ({signed(chosen)}), the rejected side up ({signed(rejected)})."
    if total == 0:
        return "The loss did not move."
    verb = "fell" if total < 0 else "rose"
    share = number(100 * chosen / total, 2)
    return f"The loss {verb} by {number(abs(total), 3)}, {share} % of it through the chosen side."


SECTIONS.add("loss", Section(
    title="What moved the loss",
    lead="An exact split of the loss's change over the two sides (Shapley).",
    order=20, needs="loss", build=build, template=TEMPLATE,
))  # fmt: skip
