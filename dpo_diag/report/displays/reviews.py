"""What people (and, apart, a judge model) said of two checkpoints: win rates, ranking, behaviours, agreement."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from dpo_diag.report.numbers import number
from dpo_diag.report.tables import table

SHOWN = 12


def comparison_frame(results: dict[str, Any]) -> pd.DataFrame:
    """A row per pair of looks: who judged, a, b, items, b's win rate with its Wilson interval, verdicts, p."""
    columns = ["judged by", "A", "B", "items", "B's win rate", "low", "high", "A / B / tie / both bad", "p"]
    rows = []
    for who, source in (("people", results), ("judge model", results.get("judge") or {})):
        for c in source.get("comparisons", [])[:SHOWN]:
            verdicts = f"{c['a_wins']} / {c['b_wins']} / {c['ties']} / {c['both_bad']}"
            rows.append((who, c["a"], c["b"], c["n"], c["win_rate"], c["low"], c["high"], verdicts, c["p"]))
    return pd.DataFrame(rows, columns=columns)


def ranking_frame(results: dict[str, Any]) -> pd.DataFrame:
    """Bradley-Terry abilities (nats against the average look), best first; empty below three looks."""
    looks = (results.get("ranking") or {}).get("looks", [])
    rows = [(x["look"], x["ability"], x["low"], x["high"], x["n"]) for x in looks] if len(looks) > 2 else []
    return pd.DataFrame(rows, columns=["look", "ability", "low", "high", "comparisons"])


def behaviour_frame(results: dict[str, Any]) -> pd.DataFrame:
    """Behaviours that reviewers marked: shares of items in which a and b show them, and the change."""
    rows = [
        (x["behaviour"], x["a"], x["b"], x["n"], x["a_shows"], x["b_shows"], x["delta"], x["low"], x["high"], x["q"])
        for x in results.get("behaviours", [])
    ]
    names = ["behaviour", "A", "B", "items", "A shows it", "B shows it", "change", "low", "high", "q"]
    return pd.DataFrame(rows, columns=names)


def agreement_frame(results: dict[str, Any]) -> pd.DataFrame:
    """Cohen's kappa of any two who judged the same items, a judge model's with people included."""
    found = [*results.get("agreement", []), *(results.get("judge") or {}).get("agreement", [])]
    rows = [(" and ".join(x["reviewers"]), x["n"], x["agreement"], x["kappa"], x["low"], x["high"]) for x in found]
    return pd.DataFrame(rows, columns=["reviewers", "items", "agreement", "kappa", "low", "high"])


def draw_reviews(results: dict[str, Any]) -> Markup:
    """The tables that have rows, the win rates first."""
    frames = (
        (comparison_frame(results), "win rates (ties and both bad count half; 95 % Wilson intervals)"),
        (ranking_frame(results), "Bradley-Terry ranking"),
        (behaviour_frame(results), "behaviours that reviewers marked"),
        (agreement_frame(results), "agreement between reviewers (Cohen's kappa)"),
    )
    formats = {"p": lambda p: number(p, 2), "q": lambda q: number(q, 2)}
    drawn = [table(f, caption, formats={k: v for k, v in formats.items() if k in f}) for f, caption in frames if len(f)]
    return Markup("").join(drawn)
