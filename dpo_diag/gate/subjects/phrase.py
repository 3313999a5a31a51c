"""`phrase: TEXT`: the share of answers that hold a phrase."""

from __future__ import annotations

from dpo_diag.diagnosis.measure import enough
from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import SUBJECTS, Missing, Quantity, Rule, Subject
from dpo_diag.outputs.phrases import contains
from dpo_diag.outputs.words import words
from dpo_diag.paired import paired_change
from dpo_diag.stats import mean_interval


def _judge(judged: JudgedRun, rule: Rule) -> Quantity:
    c, phrase = judged.comparison, str(rule["phrase"])
    if not words(phrase):
        raise Missing("the phrase has no word")
    before, after = (c.answers.of(x)["text"].map(lambda t: float(contains(t, phrase))) for x in (c.baseline, c.target))
    sources = c.answers.sources.reindex(after.index).to_numpy(dtype=object)
    change = paired_change(before.reindex(after.index), after, judged.limits["confidence_scores"], sources).delta
    return Quantity(enough(mean_interval(after), judged.limits), float(before.mean()), enough(change, judged.limits))


SUBJECTS.add("phrase", Subject("TEXT", "share of answers that hold it", _judge, limits=("max", "max_rise")))
