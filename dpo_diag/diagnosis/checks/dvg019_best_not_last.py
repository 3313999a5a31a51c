"""DVG019: an earlier checkpoint scores better than the last one, by a test corrected for looking."""

from __future__ import annotations

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.checks.shared.scores import READS, unclear, worst
from dpo_diag.diagnosis.evidence import best_and_last
from dpo_diag.thresholds import Thresholds


def best_not_last(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Compares each score's best step with the last one."""
    measures = best_and_last(ctx.run, t, ctx.window.first, ctx.window.last)
    if not measures and best_and_last(ctx.run, t):
        raise Missing("fewer than three evaluations of a task score lie between these steps")
    if not measures:
        raise Missing("no task score at three steps with its n: likelihoods alone do not rank checkpoints")
    evidence = [
        {"score": f"{m.what} on {m.split}", "best_step": m.from_step, "best": m.before, "last": m.after,
         "n": m.change.n, "change": m.change, "p": m.p, "q": m.q, "is_last": m.from_step == m.to_step}
        for m in measures
    ]  # fmt: skip
    worse, maybe = worst(measures, t), unclear(measures, t)
    if worse:
        return speaks(f"step {worse.from_step} was better than the last one: {worse}", scores=evidence)
    if maybe:
        return cannot_tell(f"step {maybe.from_step} seems better, inside the noise: {maybe.told(t)}", scores=evidence)
    return silent("the last checkpoint is as good as any", scores=evidence)


register(
    Check(
        code="DVG019",
        title="the best checkpoint is not the last",
        says="A task score, or people's blind preference, was better at an earlier checkpoint than at the last one, by "
        "2 points or more, beyond its interval and by a test that is corrected for choosing the best of several.",
        why="The loss goes on falling while the task gets worse, so the last checkpoint is kept by default. On one run "
        "of the embedded task accuracy went .523, .573, .485 under a loss that only fell.",
        needs="a task score at three steps with its n",
        severity="warning",
        evidence={
            "scores": "each score: score, best_step, best, last (shares), n, change (last less best, with its "
            "interval), p, q (p corrected for the number of steps), is_last",
        },
        false_alarms=("the earlier checkpoint is best on the very questions that chose it: confirm on fresh ones",),
        bad=Example(
            "Accuracy .523, .573, .485 on 1,500 questions.",
            fixed={"score/accuracy@held_out": [0.523, 0.573, 0.485]},
            answers=1500,
        ),
        good=Example(
            "Accuracy .50, .55, .60 on 900 questions.", fixed={"score/accuracy@held_out": [0.5, 0.55, 0.6]}, answers=900
        ),
        try_next=("take the best checkpoint, and confirm it on fresh questions",),
        sources=("arXiv 2406.02900 (quality falls with KL, often before one epoch ends)",),
        since="0.1.0",
        function=best_not_last,
        reads=READS,
    )
)
