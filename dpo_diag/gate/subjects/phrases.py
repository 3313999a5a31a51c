"""`phrases: N`: at most so many phrases that grew beyond chance."""

from __future__ import annotations

from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import SUBJECTS, Rule, Statement, Subject, check_number
from dpo_diag.text import plural


def _judge(judged: JudgedRun, rule: Rule) -> Statement:
    phrases = judged.comparison.phrases
    first = [
        f"{phrase!r} {before} → {after}"
        for phrase, before, after in phrases[["phrase", "before", "after"]].head(3).to_numpy()
    ]
    reason = f"{plural(len(phrases), 'inflated phrase')}{': ' if first else ''}{'; '.join(first)}"
    return Statement(len(phrases) > rule["phrases"], reason, float(len(phrases)))


def _check(rule: Rule, where: str) -> None:
    check_number(rule, "phrases", where)


SUBJECTS.add("phrases", Subject("N", "at most so many significantly inflated phrases", _judge, check=_check))
