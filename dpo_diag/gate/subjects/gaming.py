"""`gaming: NAME`: one of the known ways to please raters without getting better must not speak."""

from __future__ import annotations

from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import SUBJECTS, Missing, Rule, Statement, Subject, speaks
from dpo_diag.outputs.gaming import CHECKS


def _judge(judged: JudgedRun, rule: Rule) -> Statement:
    by_name = {finding.name: finding for finding in judged.comparison.gaming}
    if rule["gaming"] not in by_name:
        raise Missing(f"no such check; there are {', '.join(by_name)}")
    finding = by_name[str(rule["gaming"])]
    return speaks(finding.outcome, finding.reason)


SUBJECTS.add("gaming", Subject("NAME", f"{', '.join(CHECKS)}; fails if it speaks", _judge))
