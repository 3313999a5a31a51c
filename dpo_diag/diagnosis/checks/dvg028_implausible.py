"""DVG028: a logged mean that cannot be what its name says: a share above 1, a perplexity below 1, a loss below 0."""

from __future__ import annotations

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import Advice
from dpo_diag.diagnosis.checks.shared.check import LISTED, Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.checks.shared.plausible import READS, evidence_of, in_words
from dpo_diag.text import some
from dpo_diag.thresholds import Thresholds


def implausible(ctx: CheckContext, t: Thresholds) -> Outcome:
    """The worst is named first: what makes a whole split useless, then single metrics."""
    rows = ctx.logged.rows
    if rows.empty:
        raise Missing("the run holds no history")
    found = sorted(ctx.implausible, key=lambda one: (-len(one.withheld), one.split, one.name))
    if not found:
        return silent("every logged mean lies where its name allows", values=len(rows))
    worst = found[0]
    loss = ctx.logged.every("loss", worst.split)
    first = float(loss.finite.values[0]) if loss is not None and len(loss.finite) else None
    others = [f"{one.name} of {one.split}" for one in found[1:]]
    whole = len(worst.withheld) > 1
    left_out = f"the means of {worst.split} are" if whole else "it is"
    return speaks(
        in_words(worst, first, t) + (f"; also {some(others)}" if others else "") + f"; {left_out} not used",
        severity="error" if whole or worst.name in ("loss", "logps/chosen", "logps/rejected") else "warning",
        metrics=[evidence_of(one) for one in found][:LISTED],
        factor=worst.factor,
        cause=worst.cause,
        first_loss=first,
    )


register(
    Check(
        code="DVG028",
        title="implausible values",
        says="A logged mean lies where its name does not allow: a share or an accuracy outside 0 to 1, a perplexity "
        "below 1, a cross-entropy below 0, a log-prob above 0, a loss below its floor. What the numbers most likely "
        "are is said: sums over micro-batches (with the factor that loss and margins show), percentages, counts, a "
        "turned sign. Checks do without the metrics that this makes useless.",
        why="Trainers have logged sums over gradient-accumulation steps as means: every reward is then as many times "
        "too large, and what looks like a collapse is a unit. A number that is impossible casts doubt on its row.",
        needs="any logged metric",
        severity="error",
        evidence={
            "metrics": "each metric out of its bounds: split, name, the furthest value and its step, bound, rows",
            "factor": "sums: over how many micro-batches or processes",
            "cause": "sum | percent | count | negated | unknown, of the worst one",
            "first_loss": "loss of the first row of its split",
            "values": "values that were looked at",
        },
        false_alarms=("a metric of a trainer's own under a name that means something else here",),
        bad=Example(
            "Accuracies are 3.2 and the loss starts at 2.74 = 4 x 0.685: sums over 4 micro-batches.",
            train={
                "loss": [2.7402, 2.6794, 2.6198, 2.5614, 2.5041, 2.448],
                "rewards/margins": [0.0646, 0.187, 0.3105, 0.4346, 0.5588, 0.6833],
                "rewards/accuracies": [3.2, 3.2, 3.2, 3.2, 3.2, 3.2],
            },
        ),
        good=Example(
            "The same run with means.",
            train={
                "loss": [0.6851, 0.6699, 0.655, 0.6404, 0.626, 0.612],
                "rewards/margins": [0.0162, 0.0468, 0.0776, 0.1087, 0.1397, 0.1708],
                "rewards/accuracies": [0.8, 0.8, 0.8, 0.8, 0.8, 0.8],
            },
        ),
        try_next=(
            Advice("find where the trainer averages: sums over accumulation steps must be divided by their number", ()),
            Advice("correct the columns, or log again, and import again", ()),
        ),
        sources=(
            "ByteDance-Seed/VeOmni issue 1130: metrics multiplied by the gradient accumulation steps",
            "ml-explore/mlx-lm pull request 1209: accuracies that are counts",
        ),
        since="0.2.0",
        function=implausible,
        reads=READS,
    )
)
