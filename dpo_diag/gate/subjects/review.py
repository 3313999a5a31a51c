"""`review: win_rate`: what people preferred, of the last step that they judged against the baseline."""

from __future__ import annotations

from dpo_diag.diagnosis.measure import enough
from dpo_diag.diagnosis.pair_rows import REFERENCE
from dpo_diag.errors import DiagError
from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import SUBJECTS, Missing, Quantity, Rule, Subject
from dpo_diag.review.results import last_comparison
from dpo_diag.stats import proportion


def _judge(judged: JudgedRun, rule: Rule) -> Quantity:
    step = 0 if judged.step == REFERENCE else None if judged.step is None else int(judged.step)
    verdicts = last_comparison(judged.run, step) if judged.same_run else None
    if verdicts is None:
        raise Missing("nobody has judged its answers against this baseline: dpo-diag review RUN")
    return Quantity(enough(proportion(verdicts["win_rate"] * verdicts["n"], verdicts["n"]), judged.limits))


def _check(rule: Rule, where: str) -> None:
    if rule["review"] != "win_rate":
        raise DiagError("a review has one number", where=where, got=rule["review"], expected="win_rate", usage=True)


SUBJECTS.add(
    "review",
    Subject(
        "win_rate", "of the last step that people judged, by item, ties half (`dpo-diag review`)", _judge,
        limits=("min", "max"), check=_check,
    ),
)  # fmt: skip
