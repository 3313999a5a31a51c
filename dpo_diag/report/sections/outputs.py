"""What the checkpoints wrote: what moved, by tag, the phrases that grew, and every fixed prompt's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from dpo_diag.report.answers import prompts
from dpo_diag.report.section import SECTIONS, Context, NotApplicable, Section
from dpo_diag.report.tables import Table, table
from dpo_diag.stats import LEVEL
from dpo_diag.text import MISSING, number, percent, plural, signed

PHRASE = 0.05
"""Phrases above this false discovery rate are not shown."""
TEMPLATE = """
{% if sentence %}<p><b>{{ sentence|clean|say }}</b></p>{% endif %}
<p>{{ answered.summary|say }}</p>
{% if note %}<p class="small">{{ note|say }}</p>{% endif %}
{{ ui.answers(answered) }}
{% for title, t in tables %}<h3>{{ title|say }}</h3>{{ ui.table(t) }}{% endfor %}
{% if no_phrase_grew %}
<p class="small">{{ "No phrase grew beyond chance (false discovery rate 5 %)."|say }}</p>
{% endif %}
"""


def build(context: Context) -> Mapping[str, Any]:
    """One sentence, the answers with their filters, and the tables that have rows."""
    comparison = context.comparison
    if not comparison.get("prompts"):
        raise NotApplicable(str(comparison.get("not_applicable") or "the run has no outputs"))
    grown = grown_phrases(comparison)
    return {
        "sentence": comparison.get("sentence"),
        "note": comparison.get("note"),
        "tables": comparison_tables(comparison),
        "no_phrase_grew": comparison.get("phrases") is not None and not grown,
        "answered": prompts(comparison, grown),
    }


def comparison_tables(comparison: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """(title, table) of the parts of the comparison that have rows."""
    shares: dict[str, Callable[[Any], str]] = dict.fromkeys(("in chosen", "in rejected"), lambda v: percent(v, 1))
    counts = [row["tested"] for row in comparison.get("phrases") or [] if row.get("tested")]
    tested = f"; q: corrected for {plural(counts[0], 'n-gram')}" if counts else ""
    parts: list[tuple[str, pd.DataFrame, str, dict[str, Callable[[Any], str]]]] = [
        (
            "What moved",
            behaviours_frame(comparison),
            "prompts that moved toward what is wanted, or away; change with its "
            f"{percent(comparison.get('level', LEVEL))} interval; q: corrected for "
            f"{plural(len(_last_step(comparison.get('behaviours'))), 'row')}",
            {},
        ),
        ("Tag gaps", tags_frame(comparison), "by tag: is it good only where it looks like the training data?", {}),
        (
            "Phrases that grew",
            phrases_frame(comparison),
            f"answers that hold the phrase, before and after{tested}",
            shares,
        ),
        ("Gaming the rater", gaming_frame(comparison), "what speaks", {}),
    ]
    return [(title, table(f, caption, formats=formats, max_rows=20)) for title, f, caption, formats in parts if len(f)]


def behaviours_frame(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """One row per behaviour over all prompts at the last step: behaviour, n, toward, away, unchanged, before, after,
    change (with its interval, as text), q (p corrected for all rows of the comparison at that step); the smallest
    first. Empty where the comparison has none."""
    rows = [r for r in _last_step(comparison.get("behaviours")) if r.get("tag") in ("(all)", None, "")]
    rows.sort(key=lambda r: (r.get("q") is None, r.get("q") or 0.0, r.get("p") or 0.0))
    columns = ["behaviour", "n", "toward", "away", "unchanged", "before", "after", "change", "q"]
    return _frame([{**r, "change": _interval(r, "delta", "low", "high", signed)} for r in rows], columns)


def tags_frame(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """One row per tag at the last step: tag, metric, n, value and gap to the other prompts with their intervals."""
    rows = [
        {**r, "value": _interval(r, "value", "low", "high", number), "the others": r.get("rest"),
         "gap": _interval(r, "gap", "gap_low", "gap_high", signed)}
        for r in _last_step(comparison.get("tags"))
    ]  # fmt: skip
    return _frame(rows, ["tag", "metric", "n", "value", "the others", "gap"])


def grown_phrases(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the comparison's phrases that grew beyond chance."""
    return [r for r in comparison.get("phrases") or [] if r.get("q") is None or r["q"] <= PHRASE]


def phrases_frame(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """The phrases that more answers hold than before, strongest first: phrase, answers before and after, n, shares in
    the training answers, q (false discovery rate). Only those under 5 %."""
    rows = [
        {**r, "in chosen": r.get("in_chosen"), "in rejected": r.get("in_rejected")} for r in grown_phrases(comparison)
    ]
    return _frame(rows, ["phrase", "before", "after", "n", "in chosen", "in rejected", "q"])


def gaming_frame(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """Known ways of gaming a rater that speak: finding, numbers."""
    rows = [r for r in comparison.get("gaming") or [] if r.get("outcome") == "speaks"]
    return _frame([{"finding": r.get("title"), "numbers": r.get("reason")} for r in rows], ["finding", "numbers"])


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame([[row.get(c) for c in columns] for row in rows], columns=columns)


def _last_step(rows: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The rows of the policy's last step."""
    own = [r for r in rows or [] if r.get("model", "policy") == "policy" and r.get("step") is not None]
    last = max((r["step"] for r in own), default=None)
    return [r for r in own if r["step"] == last]


def _interval(row: Mapping[str, Any], value: str, low: str, high: str, write: Callable[[Any, int], str]) -> str:
    """ "0.31 (0.25 to 0.4)", without the brackets where there is no interval."""
    if row.get(value) is None:
        return MISSING
    text = write(row[value], 3)
    if row.get(low) is None or row.get(high) is None:
        return text
    return f"{text} ({write(row[low], 3)} to {write(row[high], 3)})"


SECTIONS.add("outputs", Section(
    title="What it writes", lead="The model's own answers, what went wrong first: read them before you decide.",
    order=5, build=build, template=TEMPLATE,
))  # fmt: skip
