"""Results as lines for a terminal."""

from __future__ import annotations

from typing import Any

from dpo_diag.outputs.sanitize import for_terminal
from dpo_diag.outputs.terminal import table

COLUMNS = 140
ROWS = 12


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(row: dict[str, Any]) -> str:
    return "-" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"


def _section(title: str, header: list[str], rows: list[list[Any]]) -> list[str]:
    return ["", title, *("  " + line for line in table(rows, header, COLUMNS))] if rows else []


def _comparisons(found: list[dict[str, Any]]) -> list[list[Any]]:
    return [
        [c["a"], c["b"], _number(c["win_rate"]), _interval(c), str(c["n"]),
         f"{c['a_wins']}/{c['b_wins']}/{c['ties']}/{c['both_bad']}", f"{c['p']:.2g}",
         "-" if c["of"] is None else f"{c['differ']} of {c['of']}"]
        for c in found
    ]  # fmt: skip


_HEADER = ["A", "B", "B's win rate", "95 % (Wilson)", "items", "A/B/tie/both bad", "p", "answers differ"]


def _agreement(found: list[dict[str, Any]]) -> list[list[Any]]:
    return [[" and ".join(x["reviewers"]), str(x["n"]), _number(x["agreement"]), _number(x["kappa"]), _interval(x)]
            for x in found]  # fmt: skip


def lines(document: dict[str, Any]) -> list[str]:
    """The document of `dpo_diag.review.results` as lines."""
    out = [f"{for_terminal(document['run'], one_line=True)}: {document['n_verdicts']} verdicts on "
           f"{document['n_items']} items by {len(document['reviewers'])} reviewers"]  # fmt: skip
    if "not_applicable" in document:
        out.append(document["not_applicable"])
    out += _section("Win rate (ties and both bad count half; several reviewers of an item are averaged)", _HEADER,
                    _comparisons(document["comparisons"][:ROWS]))  # fmt: skip
    if len(document["comparisons"]) > ROWS:
        out.append(f"  and {len(document['comparisons']) - ROWS} pairs of looks with fewer items: see --json")
    ranking = document["ranking"]
    if len(ranking.get("looks", [])) > 2:
        out += _section(
            f"Bradley-Terry ranking (log-odds against the average look; prior {ranking['prior']:g} tied comparison)",
            ["look", "ability", "95 %", "comparisons", *(["group"] if ranking["groups"] > 1 else [])],
            [[x["look"], f"{x['ability']:+.3f}", _interval(x), str(x["n"]), *([str(x["group"] + 1)] if ranking["groups"] > 1 else [])]  # noqa: E501
             for x in ranking["looks"]],
        )  # fmt: skip
        if ranking["groups"] > 1:
            out.append("  looks of different groups were never compared, even indirectly: do not rank across groups")
    out += _section(
        "Behaviours (share of answers that show them)",
        ["behaviour", "A", "B", "A shows", "B shows", "change", "95 %", "q", ""],
        [[b["behaviour"], b["a"], b["b"], _number(b["a_shows"]), _number(b["b_shows"]), f"{b['delta']:+.3f}",
          _interval(b), _number(b["q"]), b["moved"]] for b in document["behaviours"]],
    )  # fmt: skip
    header = ["reviewers", "shared items", "equal", "Cohen's kappa", "95 %"]
    out += _section("Agreement", header, _agreement(document["agreement"]))
    judge = document["judge"]
    if "not_applicable" not in judge:
        out += _section("Judge models: win rate (not counted above)", _HEADER, _comparisons(judge["comparisons"]))
        out += _section("Judge models: agreement", header, _agreement(judge["agreement"]))
        if not judge["agreement"]:
            out.append("  no person judged the same items: how far the judge can be trusted is unknown")
    if document["stale"]:
        out += ["", f"{document['stale']} verdicts left out: the run no longer holds the answers as they were judged"]
    for d in document["damaged"]:
        out.append(f"line {d['line']} of review/{for_terminal(d['file'], one_line=True)} left out: {d['why']}")
    notes = [(r["reviewer"], n) for r in document["reviewers"] for n in r["notes"]]
    if notes:
        out += ["", "Notes"]
        out += [f"  {for_terminal(who)}, {for_terminal(n['prompt_id'], one_line=True)}: "
                f"{for_terminal(n['note'], one_line=True, max_chars=400)}" for who, n in notes]  # fmt: skip
    return out
