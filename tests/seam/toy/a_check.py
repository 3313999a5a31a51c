"""A check: more than a share of the chosen answers is longer than the rejected ones."""

from __future__ import annotations

from dpo_diag.diagnosis.checks import Check, CheckContext, Example, Missing, Outcome, register, silent, speaks
from dpo_diag.thresholds import Thresholds


def longer(ctx: CheckContext, t: Thresholds) -> Outcome:
    pairs = ctx.run.pairs
    lengths = pairs[pairs["step"] == pairs["step"].max()].groupby("side")["n_tokens"].mean()
    if len(lengths) < 2:
        raise Missing("one side has no token counts")
    ratio = float(lengths["chosen"] / lengths["rejected"])
    say = speaks if ratio > t["toy_least_ratio"] else silent
    return say(f"chosen answers are {ratio:.2f} times as long", ratio=ratio)


_PAIRS = {0: ([-10.0] * 8, [-12.0] * 8), 5: ([-9.0] * 8, [-13.0] * 8)}

register(
    Check(
        code="TOY001",
        title="chosen answers are longer",
        says="Chosen answers hold more tokens than rejected ones.",
        why="A toy reason.",
        needs="pairs with token counts",
        severity="info",
        evidence={"ratio": "mean tokens of chosen over those of rejected"},
        false_alarms=("long answers may be better",),
        bad=Example("Chosen answers are twice as long.", pairs=_PAIRS, tokens=(20, 10)),
        good=Example("Both are as long.", pairs=_PAIRS, tokens=(10, 10)),
        try_next=("balance the lengths",),
        sources=("a toy",),
        since="0.1.0",
        function=longer,
        thresholds={"toy_least_ratio": 1.5},
    )
)
