"""A subject of gate rules: `toy: STATUS` fails unless the run ended with it."""

from __future__ import annotations

from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import SUBJECTS, Rule, Statement, Subject


def judge(judged: JudgedRun, rule: Rule) -> Statement:
    status = judged.run.info.status
    return Statement(status != rule["toy"], f"the run is {status}")


SUBJECTS.add("toy", Subject("STATUS", "the run's status; fails if it is another", judge))
