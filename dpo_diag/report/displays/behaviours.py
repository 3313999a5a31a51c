"""The summary above the answers: tag gaps, phrases that grew, behaviours by checkpoint (from `dpo_diag.outputs`)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from dpo_diag.report.tables import table
from dpo_diag.report.text import clean

PARTS = {
    "tags": "By tag: is it better only where it looks like the training data?",
    "phrases": "Phrases that grew",
    "behaviours": "Behaviour by checkpoint",
}


def part_frame(comparison: dict[str, Any], part: str) -> pd.DataFrame:
    """One part of the comparison as a frame, whatever it holds: a list of rows, or rows by name; empty if absent."""
    value = comparison.get(part)
    if isinstance(value, dict):
        if value.get("not_applicable"):
            return pd.DataFrame()
        value = [{"name": k, **v} if isinstance(v, dict) else {"name": k, "value": v} for k, v in value.items()]
    if not value:
        return pd.DataFrame()
    frame = pd.DataFrame(value)
    for column in frame.columns:
        if frame[column].map(lambda v: isinstance(v, (list, dict, tuple))).any():
            frame[column] = frame[column].map(_flat)
    return frame


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k} {_flat(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_flat(v) for v in value)
    return clean(value, 200)


def draw(comparison: dict[str, Any]) -> Markup:
    """The parts that are there, each as a table; a part that is not applicable says why."""
    reason = comparison.get("not_applicable")
    if reason:
        return Markup('<p class="na">Phrases, tags and behaviours: not applicable. {}.</p>').format(clean(reason))
    pieces = []
    for part, title in PARTS.items():
        value = comparison.get(part)
        if isinstance(value, dict) and value.get("not_applicable"):
            pieces.append(
                Markup('<h3>{}</h3><p class="na">Not applicable: {}.</p>').format(title, clean(value["not_applicable"]))
            )
            continue
        frame = part_frame(comparison, part)
        if len(frame):
            pieces.append(Markup("<h3>{}</h3>{}").format(title, table(frame, title, max_rows=30)))
    return Markup("").join(pieces)
