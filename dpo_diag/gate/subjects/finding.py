"""`finding: CODE`: a check of `dpo-diag explain` must not speak between baseline and last step."""

from __future__ import annotations

from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import SUBJECTS, Missing, Rule, Statement, Subject, speaks


def _judge(judged: JudgedRun, rule: Rule) -> Statement:
    if not judged.same_run:
        raise Missing("findings compare steps of one run: give a step as baseline")
    check = judged.checks.get(str(rule["finding"]))
    if check is None:
        raise Missing(f"no check {rule['finding']}; there are {', '.join(sorted(judged.checks))}")
    return speaks(str(check["outcome"]), f"{check['title']}: {check['reason']}")


SUBJECTS.add("finding", Subject("CODE", "a check of `explain`; fails if it speaks", _judge))
