"""DVG025: a task score fell beyond its interval."""

from __future__ import annotations

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import DISPLACED, LOWER_RATE, SFT_TERM, Advice
from dpo_diag.diagnosis.checks.shared.check import Check, Outcome, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.checks.shared.scores import EVIDENCE, READS, shown, task_measures, unclear, worst
from dpo_diag.thresholds import Thresholds


def score_fell(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Speaks by the verdict's own rule for harm."""
    measures = task_measures(ctx, t)
    scores = shown(measures, t)
    worse, maybe = worst(measures, t), unclear(measures, t)
    if worse:
        return speaks(str(worse), scores=scores)
    if maybe:
        return cannot_tell(f"{maybe}: inside its noise{maybe.lacking(t)}", scores=scores)
    return silent("no task score fell", scores=scores)


register(
    Check(
        code="DVG025",
        title="a task score fell",
        says="A task score, or the share of answers that the checker accepts, fell by at least 2 points, and its "
        "interval excludes no change.",
        why="This is harm by what the model does, not by what it finds likely. With it a fall of the likelihood is "
        "more than a change of wording.",
        needs="a task score or checked answers at two steps",
        severity="error",
        evidence={**EVIDENCE},
        false_alarms=(
            "a checker that rejects a new but right form of answer: read some of the answers that turned wrong",
            "a change of the decoding settings between the two measurements of a score",
        ),
        bad=Example(
            "Accuracy falls from 0.693 to 0.417 on 1,500 questions.",
            fixed={"score/accuracy@held_out": [0.693, 0.417]},
            answers=1500,
        ),
        good=Example(
            "Accuracy rises from 0.60 to 0.65 on 900 questions.",
            fixed={"score/accuracy@held_out": [0.6, 0.65]},
            answers=900,
        ),
        try_next=(
            "go back to the checkpoint before the fall",
            Advice(SFT_TERM.text, (*SFT_TERM.when, DISPLACED)),
            Advice(LOWER_RATE.text, (*LOWER_RATE.when, DISPLACED)),
            "read the answers that turned wrong (dpo-diag outputs)",
        ),
        sources=("Razin et al. 2024, arXiv 2410.08847 (likelihood displacement)",),
        since="0.1.0",
        function=score_fell,
        reads=READS,
    )
)
