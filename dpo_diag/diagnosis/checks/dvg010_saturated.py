"""DVG010: the loss lies at its floor, so that it can no longer tell checkpoints apart and teaches nothing."""

from __future__ import annotations

import math

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import LOSS_TAUGHT, Advice
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.checks.shared.loss import FLOOR_EVIDENCE, FLOOR_READS, at_floor
from dpo_diag.stats import LEAST_FOR_T
from dpo_diag.text import plural
from dpo_diag.thresholds import Thresholds


def saturated(ctx: CheckContext, t: Thresholds) -> Outcome:
    """From the logged loss, else from the pairs' own."""
    if not math.isfinite(ctx.start.value) and not ctx.reference_free:
        raise Missing(ctx.start.reason)
    if ctx.start.floor is None and ctx.start.known:
        raise Missing("this loss has no known floor")
    logged = [ctx.maybe(ctx.logged.training, "loss", 1), ctx.maybe(ctx.logged.fixed, "loss")]
    last = {series.split: float(series.values[-1]) for series in logged if series is not None}
    if not last:
        return _of_pairs(ctx, t)
    floor = at_floor(ctx, t)
    if floor is None:
        return silent("the loss is above its floor", last_loss=last, floor=ctx.start.floor)
    ends = f"the loss of {floor.split} ends at {floor.last_loss:.4g}, its floor ({floor.floor:.4g})"
    there = f"{floor.rows_there} of its {plural(floor.rows, 'row')} {'is' if floor.rows_there == 1 else 'are'} there"
    since = floor.rows_since
    many = "all" if floor.rows_there_since == since else f"{floor.rows_there_since} of the"
    stays = f", {many} {since} from {ctx.info.at(floor.since_step)} on"
    return speaks(f"{ends}: {there}{stays if since >= LEAST_FOR_T else ''}", **floor.evidence())


def _of_pairs(ctx: CheckContext, t: Thresholds) -> Outcome:
    change, floor = ctx.maybe(ctx.pairs.change), ctx.start.floor
    if change is None or floor is None or ctx.info.loss is None:
        raise Missing("no loss is logged, and none can be computed from pairs")
    last = float(np.mean(ctx.pairs.losses(change[1])))
    if last - floor <= t["saturation_share"] * (ctx.start.value - floor):
        return speaks(
            f"the mean pair loss of {ctx.pairs.split} is {last:.4g}, at its floor", last_loss=last, floor=floor
        )
    return silent("the mean pair loss is above its floor", last_loss=last, floor=floor)


register(
    Check(
        code="DVG010",
        title="saturated at the loss's floor",
        says="The loss ends within 2 % of the way from its floor: 0 for sigmoid, more with label smoothing.",
        why="Every pair is won, so the loss no longer tells checkpoints apart. What further steps still change are "
        "probabilities that no pair asks to change.",
        needs="loss",
        severity="warning",
        evidence={
            **FLOOR_EVIDENCE,
            "last_loss": "median loss of the last fifth of its rows; silent: split -> last loss",
        },
        false_alarms=("training loss alone, after several epochs: look at the held-out loss before you stop",),
        bad=Example(
            "A sigmoid loss that decays to 0 within 40 rows.",
            train={"loss": 0.69 * np.exp(-np.arange(40) / 4.0)},
            run={"loss": {"types": ["sigmoid"]}},
        ),
        good=Example(
            "A sigmoid loss that falls to 0.3.",
            train={"loss": np.linspace(0.69, 0.3, 40)},
            run={"loss": {"types": ["sigmoid"]}},
        ),
        try_next=(
            Advice("stop earlier: more steps on won pairs only push probabilities further", LOSS_TAUGHT),
            Advice("use harder pairs, or label smoothing", LOSS_TAUGHT),
        ),
        sources=("zhyang2226/OPA-DPO issue 10: loss to 0 and no change in outputs",),
        since="0.1.0",
        function=saturated,
        reads=FLOOR_READS,
    )
)
