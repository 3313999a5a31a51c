"""DVG018: chosen fell in likelihood, and no task score got worse."""

from __future__ import annotations

from typing import Any

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import Check, Outcome, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.shared.chosen import material_falls
from dpo_diag.diagnosis.checks.shared.chosen_change import READS as CHOSEN
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.checks.shared.scores import EVIDENCE, READS, shown, task_measures, worst
from dpo_diag.diagnosis.evidence import newest_preferences
from dpo_diag.text import percent
from dpo_diag.thresholds import Thresholds


def benign(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Speaks where every score's interval excludes a fall that matters, by the verdict's own rule."""
    falls = material_falls(ctx, t)
    if not falls:
        return silent("chosen did not fall, so there is nothing to excuse")
    preferred = newest_preferences(ctx.run, t)
    measures = (ctx.maybe(task_measures, ctx, t) or []) if preferred else task_measures(ctx, t)
    evidence: dict[str, Any] = {
        "scores": shown(measures, t), "review": shown(preferred, t), "fall": falls[0].evidence(t),
    }  # fmt: skip
    if worst(measures, t):
        return silent("a task score fell (DVG025)", **evidence)
    against = worst(preferred, t)
    if against:
        return silent(f"people preferred the earlier answers: {against} (DVG019)", **evidence)
    # A review of some dozens of prompts can hardly exclude a small fall: beside scores, it only speaks against them.
    judged = measures or preferred
    for measure in judged:
        if measure.direction(t) == "unclear":
            margin = percent(t["verdict.benign_margin"])
            return cannot_tell(f"{measure}: a fall of {margin} is not excluded{measure.lacking(t)}", **evidence)
    nearest = min(judged, key=lambda m: m.change.low)
    return speaks(f"{falls[0].in_words}, and no score got worse: {nearest}", **evidence)


_FALLEN = {"loss": [0.69, 0.6, 0.5], "rewards/chosen": [0.0, -0.3, -0.6], "rewards/margins": [0.0, 0.4, 0.9]}

register(
    Check(
        code="DVG018",
        title="likelihood fell, the task did not get worse",
        says="Chosen became less likely (DVG001), and every task score either rose or excludes a fall of 5 points.",
        why="It is the counter-evidence to DVG001: the probability left the chosen wording, not the task. Filtering "
        "the data restored behaviour in Razin et al. although chosen log-probs still fell.",
        needs="chosen's log-prob and a task score at two steps",
        severity="info",
        evidence={
            **EVIDENCE,
            "review": "people's blind preferences for the last step that they judged, in the same form",
            "fall": "the fall of chosen, as in DVG001",
        },
        false_alarms=("the scores test something else than what the pairs teach",),
        bad=Example(
            "Chosen falls; accuracy rises from 0.618 to 0.645 of 3,000 questions.",
            fixed={**_FALLEN, "score/accuracy@held_out": [0.618, 0.63, 0.645]},
            answers=3000,
        ),
        good=Example(
            "Chosen falls; accuracy falls from 0.7 to 0.4: no excuse.",
            fixed={**_FALLEN, "score/accuracy@held_out": [0.7, 0.5, 0.4]},
            answers=1000,
        ),
        try_next=("nothing, by these scores; keep watching the outputs",),
        sources=(
            "Razin et al. 2024, arXiv 2410.08847 (likelihood displacement)",
            "filtered data restored behaviour though chosen still fell, ibid.",
        ),
        since="0.1.0",
        function=benign,
        reads=(*CHOSEN, *READS),
    )
)
