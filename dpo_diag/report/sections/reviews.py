"""What people (and, apart, a judge model) said of two checkpoints: win rates, ranking, behaviours, agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.report.section import SECTIONS, Context, NotApplicable, NothingToSay, Section
from dpo_diag.report.tables import Table, table
from dpo_diag.review import results
from dpo_diag.text import number

SHOWN = 12
"""Comparisons that are shown."""
TEMPLATE = """<p class="small">{{ summary|say }}</p>{% for t in tables %}{{ ui.table(t) }}{% endfor %}"""


def build(context: Context) -> Mapping[str, Any]:
    """The tables that have rows, the win rates first."""
    if not context.run.has("outputs"):
        raise NothingToSay("there are no answers to judge")
    reviewed = results(context.run)
    if reviewed.get("not_applicable"):
        raise NotApplicable(str(reviewed["not_applicable"]))
    summary = (
        f"{reviewed['n_verdicts']} verdicts on {reviewed['n_items']} items by {len(reviewed['reviewers'])} reviewers."
    )
    return {"summary": summary, "tables": review_tables(reviewed)}


def review_tables(reviewed: Mapping[str, Any]) -> list[Table]:
    """Win rates of people and of a judge model, Bradley-Terry abilities (from three checkpoints on), the behaviours
    that reviewers marked, and Cohen's kappa of any two who judged the same items."""
    judge = reviewed.get("judge") or {}
    compared = [
        {"judged by": who, **c, "verdicts": f"{c['a_wins']} / {c['b_wins']} / {c['ties']} / {c['both_bad']}"}
        for who, source in (("people", reviewed), ("judge model", judge))
        for c in source.get("comparisons", [])[:SHOWN]
    ]
    ranked = (reviewed.get("ranking") or {}).get("looks", [])
    agreed = [
        {**a, "reviewers": " and ".join(a["reviewers"])}
        for a in [*reviewed.get("agreement", []), *judge.get("agreement", [])]
    ]
    bounds = {"low": "low", "high": "high"}
    shown = (
        (compared, "win rates (ties and both bad count half; 95 % Wilson intervals)",
         {"judged by": "judged by", "a": "A", "b": "B", "n": "items", "win_rate": "B's win rate", **bounds,
          "verdicts": "A / B / tie / both bad", "p": "p"}),
        (ranked if len(ranked) > 2 else [], "Bradley-Terry ranking",
         {"look": "checkpoint", "ability": "ability", **bounds, "n": "comparisons"}),
        (reviewed.get("behaviours", []), "behaviours that reviewers marked",
         {"behaviour": "behaviour", "a": "A", "b": "B", "n": "items", "a_shows": "A shows it", "b_shows": "B shows it",
          "delta": "change", **bounds, "q": "q"}),
        (agreed, "agreement between reviewers (Cohen's kappa)",
         {"reviewers": "reviewers", "n": "items", "agreement": "agreement", "kappa": "kappa", **bounds}),
    )  # fmt: skip
    return [
        table(pd.DataFrame(rows)[list(names)], caption, names=names,
              formats={c: _two_digits for c in ("p", "q") if c in names})
        for rows, caption, names in shown if rows
    ]  # fmt: skip


def _two_digits(value: Any) -> str:
    return number(value, 2)


SECTIONS.add("reviews", Section(
    title="What people said", lead="Two checkpoints' answers side by side, judged blind.",
    order=7, build=build, template=TEMPLATE,
))  # fmt: skip
