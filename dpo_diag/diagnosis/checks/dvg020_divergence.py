"""DVG020: the training loss ends well above where it started, climbed back from its minimum, or is NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import (
    BETA_LARGE,
    LOWER_RATE,
    NOT_CLIPPED,
    REFERENCE_RIGHT,
    SOUND,
    TRAINED,
    Advice,
)
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.chosen_means import rolling_mean
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.checks.shared.logged import Series
from dpo_diag.ends import LEAST_ROWS, Ends
from dpo_diag.stats import LEAST_FOR_T
from dpo_diag.text import both_ends
from dpo_diag.thresholds import Thresholds

ROUNDING = 1e-3
"""A rise below this is none, however small the loss was."""


def diverged(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Four ways to diverge, the plainest first."""
    logged = next((s for split in ctx.logged.train_splits if (s := ctx.logged.every("loss", split))), None)
    if logged is None:
        raise Missing("no loss of the training batches is logged")
    if moved := ctx.moved_coefficients:
        raise Missing(f"a schedule moved the loss's {', '.join(moved)}, so that its values have no course")
    tail = logged.values[-max(LEAST_FOR_T, int(len(logged) * t["divergence_tail_share"])) :]
    if len(logged) >= LEAST_ROWS and not np.isfinite(tail).any():
        return speaks("the training loss is not finite at the end", steps=logged.steps[-len(tail) :])
    loss = logged.finite
    trend = loss.ends(t["confidence"])
    if trend is None:
        raise Missing("fewer than six finite losses")
    known = ctx.known_start(t)
    start = trend.start if known is None else known
    evidence: dict[str, Any] = {"first": trend.start, "last": trend.end, "change": trend.change, "start": start}
    rise = max(t["divergence_min_share"] * abs(trend.start), ROUNDING)
    if trend.change.above and trend.change.value > rise and trend.end > start:
        ends = " to ".join(both_ends(trend.start, trend.end, 3))
        return speaks(f"the training loss rose from {ends} ({trend.start_is}, {trend.end_is})", **evidence)
    began_at_start = abs(float(loss.values[0]) - start) <= t["divergence_start_share"] * abs(start)
    far_above = trend.level.low > start + rise and trend.end > t["divergence_min_factor"] * abs(start)
    if known is not None and began_at_start and far_above:
        return speaks(f"the training loss left its start ({start:.3g}) and ends at {trend.level}", **evidence)
    return _from_minimum(ctx, loss, trend, rise, t, evidence) or silent(
        "the loss does not end above where it was", **evidence
    )


def _from_minimum(
    ctx: CheckContext, loss: Series, trend: Ends, rise: float, t: Thresholds, evidence: dict[str, Any]
) -> Outcome | None:
    """Whether the loss climbed back over half of what it had fallen."""
    k = max(LEAST_FOR_T, int(len(loss) * t["sliding_share"]))
    if len(loss) < t["sliding_min_windows"] * k:
        return None
    rolling = rolling_mean(loss.values, k)
    lowest = int(rolling[:-k].argmin())
    step = loss.steps[lowest + k - 1]
    # The minimum is chosen by looking at every window: Bonferroni over the windows that do not overlap.
    z = float(special.ndtri(1 - (1 - t["confidence"]) / (2 * len(loss) / k)))
    up, half = float(rolling[-1] - rolling[lowest]), z * trend.sd * math.sqrt(2 / k)
    fallen = float(rolling[0] - rolling[lowest])
    evidence |= {"minimum": rolling[lowest], "minimum_step": step, "rise_from_minimum": up}
    if up > half and up > rise and up > t["divergence_min_share_of_fall"] * fallen:
        return speaks(
            f"the training loss climbed back from {rolling[lowest]:.3g} ({ctx.info.at(step)}) to {rolling[-1]:.3g}",
            # Still below its start: an earlier checkpoint is better, but this one is no ruin.
            severity="warning" if rolling[-1] < evidence["start"] else None,
            **evidence,
        )
    return None


register(
    Check(
        code="DVG020",
        title="divergence of the loss",
        says="The training loss ends well above where it started, left its start for good in the first steps, climbed "
        "back over half of what it had fallen, or is not finite.",
        why="The last checkpoint is worse than an earlier one by the loss's own measure, and usually beyond repair.",
        needs="loss of the training batches",
        severity="error",
        evidence={
            "steps": "steps at the end whose loss is not finite",
            "first": "mean loss of the first rows: a quarter of all, at least three",
            "last": "mean loss of as many last rows",
            "change": "last less first, with its interval",
            "start": "the loss of a policy at its reference; else that of the first rows",
            "minimum": "smallest mean over a window of an eighth of the rows",
            "minimum_step": "last step of that window",
            "rise_from_minimum": "mean of the last window less the minimum",
        },
        false_alarms=("a curriculum that goes from easy to hard pairs",),
        bad=Example(
            "Around 0.69 for twenty rows, then up to 3.",
            train={"loss": np.concatenate([np.full(20, 0.69), np.linspace(0.7, 3.0, 20)]) + noise(40, 0.05)},
        ),
        good=Example(
            "Down from 0.69 to 0.4 under noise.", train={"loss": np.linspace(0.69, 0.4, 40) + noise(40, 0.08)}
        ),
        try_next=(
            LOWER_RATE,
            Advice(
                "lower beta: each nat of difference counts beta times", (SOUND, TRAINED, REFERENCE_RIGHT, BETA_LARGE)
            ),
            Advice("clip gradients at 1", (SOUND, TRAINED, NOT_CLIPPED)),
            "check the data at the step where it turns",
        ),
        sources=("what log linters look for; here without the false alarm on a fast fall",),
        since="0.1.0",
        function=diverged,
        reads=(
            "confidence",
            "divergence_min_share",
            "divergence_min_share_of_fall",
            "divergence_start_share",
            "divergence_min_factor",
            "divergence_tail_share",
            "sliding_share",
            "sliding_min_windows",
        ),
    )
)
