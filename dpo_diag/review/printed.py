"""Results as lines for a terminal."""

from __future__ import annotations

from textwrap import indent
from typing import Any

from dpo_diag.styled import wrap
from dpo_diag.text import arrow, bracket, plural, safe, signed, table

ROWS = 12
CONCLUSIONS = 3
"""Comparisons that are put into words, those of most items."""
COLUMNS = 80


def _section(title: str, header: list[str], rows: list[list[Any]], columns: int) -> list[str]:
    made = indent(table(header, rows, columns - 2, digits=3), "  ")
    return ["", *wrap(title, columns), made] if rows else []


def _comparisons(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [
        [c["a"], c["b"], c["win_rate"], bracket(c["low"], c["high"]), c["n"],
         f"{c['a_wins']}/{c['b_wins']}/{c['ties']}/{c['both_bad']}", c["q"]]
        for c in rows
    ]  # fmt: skip


def _agreement(rows: list[dict[str, Any]]) -> list[list[Any]]:
    return [
        [" and ".join(x["reviewers"]), x["n"], x["agreement"], x["kappa"], bracket(x["low"], x["high"])] for x in rows
    ]


_COMPARISONS = ["A", "B", "B wins", "95 %", "items", "A/B/tie/bad", "q"]
_AGREEMENT = ["reviewers", "shared items", "equal", "kappa", "95 %"]
_OF_COMPARISONS = "ties and both bad count half; Wilson's interval; q: sign test"


def lines(document: dict[str, Any], columns: int = COLUMNS) -> list[str]:
    """The document of `dpo_diag.review.results` as lines of at most `columns` cells: first what it comes to."""
    out = [
        f"{safe(document['run'], one_line=True)}: {plural(document['n_verdicts'], 'verdict')} on "
        f"{plural(document['n_items'], 'item')} by {plural(len(document['reviewers']), 'reviewer')}"
    ]
    if "not_applicable" in document:
        out.append(document["not_applicable"])
    for c in document["comparisons"][:CONCLUSIONS]:
        out += wrap(safe(c["conclusion"], one_line=True), columns)
    out += _section(f"Win rate ({_OF_COMPARISONS})", _COMPARISONS, _comparisons(document["comparisons"][:ROWS]),
                    columns)  # fmt: skip
    if len(document["comparisons"]) > ROWS:
        out.append(f"  and {len(document['comparisons']) - ROWS} pairs of checkpoints with fewer items: see --json")
    out += _ranking(document["ranking"], columns)
    out += _section(
        "Behaviours (share of answers that show them)",
        ["behaviour", "A → B", "share", "change, 95 %", "q", ""],
        [[b["behaviour"], f"{b['a']} → {b['b']}", arrow(b["a_shows"], b["b_shows"], 2),
          f"{signed(b['delta'], 2)} {bracket(b['low'], b['high'], signed)}", b["q"], b["moved"]]
         for b in document["behaviours"]],
        columns,
    )  # fmt: skip
    out += _section("Agreement (Cohen's kappa)", _AGREEMENT, _agreement(document["agreement"]), columns)
    judge = document["judge"]
    if "not_applicable" not in judge:
        told = _comparisons(judge["comparisons"])
        out += _section("Judge models: win rate (not counted above)", _COMPARISONS, told, columns)
        out += _section("Judge models: agreement", _AGREEMENT, _agreement(judge["agreement"]), columns)
        if not judge["agreement"]:
            out.append("  no person judged the same items: how far the judge can be trusted is unknown")
    if document["stale"]:
        out += ["", f"{plural(document['stale'], 'verdict')} left out: the run no longer holds the answers as judged"]
    for d in document["damaged"]:
        out.append(f"line {d['line']} of review/{safe(d['file'], one_line=True)} left out: {d['why']}")
    notes = [(r["reviewer"], n) for r in document["reviewers"] for n in r["notes"]]
    if notes:
        out += ["", "Notes"]
    return out + [
        f"  {safe(who)}, {safe(n['prompt_id'], one_line=True)}: {safe(n['note'], one_line=True, max_chars=400)}"
        for who, n in notes
    ]


def _ranking(ranking: dict[str, Any], columns: int) -> list[str]:
    """Of three checkpoints or more: two are ranked by their win rate."""
    rows = ranking.get("looks", [])
    if len(rows) < 3:
        return []
    several = ranking["groups"] > 1
    out = _section(
        "Bradley-Terry ranking (log-odds against the average checkpoint; prior "
        f"{ranking['prior']:g} tied comparison)",
        ["checkpoint", "ability", "95 %", "comparisons", *(["group"] if several else [])],
        [[x["look"], signed(x["ability"]), bracket(x["low"], x["high"], signed), x["n"],
          *([x["group"] + 1] if several else [])] for x in rows],
        columns,
    )  # fmt: skip
    note = "  checkpoints of different groups were never compared, even indirectly: do not rank across groups"
    return out + ([note] if several else [])
