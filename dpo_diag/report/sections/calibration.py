"""Whether the model's first choices are right as often as their probability says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.report.plots import Series, line_chart, line_values
from dpo_diag.report.section import SECTIONS, Context, NothingToSay, Section
from dpo_diag.report.svg import responsive
from dpo_diag.report.tables import table
from dpo_diag.text import number, percent

TEMPLATE = "{% call ui.figure(caption, [bins]) %}{{ plot }}{% endcall %}"


def build(context: Context) -> Mapping[str, Any]:
    """Both steps' curves over the diagonal, and the later one's bins as a table."""
    ends = context.document.get("calibration") or {}
    known = {end: found for end, found in ends.items() if found.get("curve")}
    if "to" not in known:
        raise NothingToSay(ends.get("to", {}).get("not_applicable", "no tokens are recorded"))
    last, step = known["to"], context.document["step_word"]
    caption = f"ECE {number(last['ece'])} over {number(last['n_tokens'])} tokens of {last['side']}."
    steps = {end: f"{step} {context.document[f'{end}_step']}" for end in known}
    lines = [Series("calibrated", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "ref")]
    for end, found in known.items():
        x, y = (np.array([row[name] for row in found["curve"]]) for name in ("confidence", "accuracy"))
        lines.append(Series(steps[end], x, y, "run-b" if end == "to" else "run-a"))
    return {
        "caption": caption,
        "plot": responsive(
            lambda w: line_chart(lines, width=w, height=260, description=caption, x_label="confidence"),
            line_values(lines, "confidence"),
        ),
        "bins": table(
            pd.DataFrame(last["curve"]), "reliability by bin",
            formats={"low": number, "high": number, "n": number, "confidence": percent, "accuracy": percent},
        ),
    }  # fmt: skip


SECTIONS.add("calibration", Section(
    title="Calibration",
    lead="How often the model's first choice is right, against the probability that it gives it.",
    order=48, build=build, template=TEMPLATE,
))  # fmt: skip
