"""`behaviour: NAME`: what is wanted of answers must not have moved away, over all prompts or any tag."""

from __future__ import annotations

from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import SUBJECTS, Missing, Rule, Statement, Subject
from dpo_diag.text import arrow


def _judge(judged: JudgedRun, rule: Rule) -> Statement:
    table = judged.comparison.at_target(judged.comparison.behaviours)
    rows = table[table["behaviour"] == rule["behaviour"]]
    if rows.empty:
        raise Missing(f"not measured here; there are {', '.join(sorted(set(table['behaviour'])))}")
    away = rows[rows["verdict"] == "away"]
    shown = (rows if away.empty else away).iloc[0]
    moved = arrow(shown["before"], shown["after"], 3)
    reason = f"{shown['tag']}: {moved} (n {shown['n']}, q {shown['q']:.2g})"
    return Statement(not away.empty, reason)


SUBJECTS.add("behaviour", Subject("NAME", "fails if it moved away from what is wanted", _judge))
