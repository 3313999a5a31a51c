"""The summary above the answers: what moved, by tag, and the phrases that grew (from `dpo_diag.outputs.compare`)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from dpo_diag.report.numbers import number, percent, signed
from dpo_diag.report.tables import table
from dpo_diag.report.text import clean

PHRASE = 0.05
"""Phrases above this false discovery rate are not shown."""


def _last_look(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the policy's last step."""
    own = [r for r in rows if r.get("model", "policy") == "policy" and r.get("step") is not None]
    last = max((r["step"] for r in own), default=None)
    return [r for r in own if r["step"] == last]


def behaviours_frame(comparison: dict[str, Any]) -> pd.DataFrame:
    """One row per behaviour over all prompts at the last step: behaviour, n, toward, away, unchanged, before, after,
    change (with its interval, as text); those that moved beyond chance first. Empty where the comparison has none."""
    rows = [r for r in _last_look(comparison.get("behaviours") or []) if r.get("tag") in ("(all)", None, "")]
    rows.sort(key=lambda r: (r["p"] is None, r["p"]) if "p" in r else (True, 0))
    columns = ["behaviour", "n", "toward", "away", "unchanged", "before", "after", "change", "p"]
    frame = [[r.get(c) for c in columns[:7]] + [_interval(r, "delta", "low", "high", signed), r.get("p")] for r in rows]
    return pd.DataFrame(frame, columns=columns)


def tags_frame(comparison: dict[str, Any]) -> pd.DataFrame:
    """One row per tag at the last step: tag, metric, n, value and gap to the other prompts with their intervals."""
    columns = ["tag", "metric", "n", "value", "the others", "gap"]
    frame = [
        [
            r.get("tag"), r.get("metric"), r.get("n"), _interval(r, "value", "low", "high", number), r.get("rest"),
            _interval(r, "gap", "gap_low", "gap_high", signed),
        ]
        for r in _last_look(comparison.get("tags") or [])
    ]  # fmt: skip
    return pd.DataFrame(frame, columns=columns)


def phrases_frame(comparison: dict[str, Any]) -> pd.DataFrame:
    """The phrases that more answers hold than before, strongest first: phrase, answers before and after, n, shares in
    the training answers, q (false discovery rate). Only those under 5 %."""
    columns = ["phrase", "before", "after", "n", "in chosen", "in rejected", "q"]
    rows = [r for r in comparison.get("phrases") or [] if r.get("q") is None or r["q"] <= PHRASE]
    frame = [
        [
            r.get("phrase"),
            r.get("before"),
            r.get("after"),
            r.get("n"),
            r.get("in_chosen"),
            r.get("in_rejected"),
            r.get("q"),
        ]
        for r in rows
    ]
    return pd.DataFrame(frame, columns=columns)


def gaming_frame(comparison: dict[str, Any]) -> pd.DataFrame:
    """Known ways of gaming a rater that speak: title, reason."""
    rows = [r for r in comparison.get("gaming") or [] if r.get("outcome") == "speaks"]
    return pd.DataFrame([[r.get("title"), r.get("reason")] for r in rows], columns=["finding", "numbers"])


def _interval(row: dict[str, Any], value: str, low: str, high: str, write: Any) -> str:
    if row.get(value) is None:
        return "–"
    text = str(write(row[value], 3))
    if row.get(low) is None or row.get(high) is None:
        return text
    return f"{text} ({write(row[low], 3)} to {write(row[high], 3)})"


def draw(comparison: dict[str, Any]) -> Markup:
    """One sentence, then the tables that are there; a part that is not applicable says why."""
    reason = comparison.get("not_applicable")
    if reason:
        return Markup('<p class="na">Phrases, tags and behaviours: not applicable. {}</p>').format(clean(reason))
    pieces = (
        [Markup("<p><b>{}</b></p>").format(clean(comparison.get("sentence")))] if comparison.get("sentence") else []
    )
    shares = {"in chosen": lambda v: percent(v, 1), "in rejected": lambda v: percent(v, 1)}
    parts: list[tuple[str, pd.DataFrame, str, dict[str, Any]]] = [
        ("What moved", behaviours_frame(comparison), "prompts that moved toward what is wanted, or away", {}),
        ("Tag gaps", tags_frame(comparison), "by tag: is it good only where it looks like the training data?", {}),
        ("Phrases that grew", phrases_frame(comparison), "answers that hold the phrase, before and after", shares),
        ("Gaming the rater", gaming_frame(comparison), "what speaks", {}),
    ]
    for title, frame, caption, formats in parts:
        if len(frame):
            pieces.append(Markup("<h3>{}</h3>{}").format(title, table(frame, caption, formats=formats, max_rows=20)))
    if comparison.get("phrases") is not None and phrases_frame(comparison).empty:
        pieces.append(Markup('<p class="small">No phrase grew beyond chance (false discovery rate 5 %).</p>'))
    return Markup("").join(pieces)
