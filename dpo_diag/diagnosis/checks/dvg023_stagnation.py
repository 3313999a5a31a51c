"""DVG023: after an early improvement the loss is flat over the second half, though the learning rate is not low."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import LOSS_TAUGHT, Advice
from dpo_diag.diagnosis.checks.shared.check import Check, Outcome, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.checks.shared.logged import Series
from dpo_diag.diagnosis.checks.shared.loss import FLOOR_EVIDENCE, FLOOR_READS, at_floor, moving_metric, no_gradient
from dpo_diag.ends import ends_of
from dpo_diag.stats import LEAST_FOR_T
from dpo_diag.text import number
from dpo_diag.thresholds import Thresholds


def stagnation(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Speaks on a plateau that nothing explains."""
    floor = at_floor(ctx, t)
    if floor is not None:
        return silent("the loss is at its floor (DVG010)", **floor.evidence())
    if no_gradient(ctx) and moving_metric(ctx, t) is None:
        return silent("nothing was trained at all (DVG008)")
    loss = ctx.logged.training("loss", int(t["stagnation_min_rows"]))
    half = len(loss) // 2
    whole, late = (ends_of(values, level=t["confidence"]) for values in (loss.values, loss.values[half:]))
    known = ctx.known_start(t)
    start = float(loss.values[:LEAST_FOR_T].mean()) if known is None else known
    early = start - late.start
    decayed = _rate_decayed(ctx, loss, t)
    evidence: dict[str, Any] = {"change_in_second_half": late.change, "fall_in_first_half": early, "low_rate": decayed}
    if _held_out_fell(ctx, float(loss.steps[half]), t):
        return silent("the held-out loss still fell in the second half", **evidence)
    chance = t["not_learning_sds"] * whole.sd / math.sqrt(whole.k)
    if early <= max(chance, t["not_learning_share"] * abs(start)):
        return silent("no early improvement to stagnate after (see DVG009)", **evidence)
    bound = t["stagnation_share"] * early
    # A small rise is a plateau too; a larger one is DVG020's.
    if late.change.low > -bound and late.change.high < max(bound, t["divergence_min_share"] * abs(late.start)):
        if decayed:
            return silent("the loss is flat because the learning rate has decayed", **evidence)
        if late.end < t["stagnation_min_level"] * abs(start):
            return silent("the loss is flat after most of it is gone", **evidence)
        rate = "the learning rate is not low" if decayed is not None else "the learning rate is not recorded"
        level = f"{number(late.start)} and {number(late.end)} at its ends"
        return speaks(f"the training loss is flat over the second half, {level}; {rate}", **evidence)
    if late.change.below:
        return silent("the loss still falls in the second half", **evidence)
    return cannot_tell("the change in the second half is inside its noise", **evidence)


def _rate_decayed(ctx: CheckContext, loss: Series, t: Thresholds) -> bool | None:
    """Whether the learning rate was low in the second half; None where it is not recorded."""
    rates = ctx.logged.find("learning_rate", loss.split, int(t["stagnation_min_rates"]))
    if rates is None:
        return None
    second_half = rates.values[len(rates) // 2 :]
    return bool(np.median(second_half) < t["stagnation_min_rate"] * rates.values.max())


def _held_out_fell(ctx: CheckContext, middle: float, t: Thresholds) -> bool:
    """Whether a fixed set's loss fell after the step in the middle."""
    fixed = ctx.maybe(ctx.logged.fixed, "loss", int(t["stagnation_min_rates"]))
    if fixed is None:
        return False
    until = fixed.values[fixed.steps <= middle]
    return bool(len(until) and fixed.values[-1] < (1 - t["stagnation_min_held_out_fall"]) * until[-1])


_T = np.arange(120)
_PLATEAU = 0.5 + 0.19 * np.exp(-_T / 8.0) + noise(120, 0.01)

register(
    Check(
        code="DVG023",
        title="stagnation",
        says="The training loss fell early and is flat over the second half, although the learning rate is above a "
        "fifth of its maximum and more than half of the loss is left.",
        why="Half of the compute changed nothing that the loss can see. The rate is too high to settle or too low to "
        "leave, or the data hold no more.",
        needs="twenty rows of the training loss",
        severity="info",
        evidence={
            **FLOOR_EVIDENCE,
            "change_in_second_half": "change of the loss from the start to the end of the second half, with its "
            "interval",
            "fall_in_first_half": "fall of the loss before that",
            "low_rate": "whether the learning rate had decayed in the second half; null where it is not recorded",
        },
        false_alarms=("the held-out loss or a task score still improves, and is logged under another name",),
        bad=Example(
            "The loss falls to 0.5 within thirty rows and stays there at a constant rate.",
            train={"loss": _PLATEAU, "learning_rate": [5e-6] * 120},
        ),
        good=Example(
            "The same plateau under a rate that decays.",
            train={"loss": _PLATEAU, "learning_rate": 5e-6 * np.exp(-_T / 20.0)},
        ),
        try_next=(Advice("stop earlier, or try another learning rate for what is left to learn", LOSS_TAUGHT),),
        sources=("what log linters look for",),
        since="0.1.0",
        function=stagnation,
        reads=(
            "confidence",
            "stagnation_share",
            "stagnation_min_rows",
            "stagnation_min_rates",
            "stagnation_min_rate",
            "stagnation_min_level",
            "stagnation_min_held_out_fall",
            "divergence_min_share",
            "not_learning_share",
            "not_learning_sds",
            *FLOOR_READS,
        ),
    )
)
