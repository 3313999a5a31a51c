"""DVG008: no gradient reaches the weights; nothing moves."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.checks.shared.loss import FLOOR_READS, at_floor, moving_metric
from dpo_diag.stats import LEAST_FOR_T
from dpo_diag.thresholds import Thresholds


def dead(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Asks the learning rate, the gradient norm, the sums of a fixed set, then its means."""
    grads = ctx.maybe(ctx.logged.training, "grad_norm", LEAST_FOR_T)
    rates = ctx.maybe(ctx.logged.training, "learning_rate", LEAST_FOR_T)
    moved = _largest_change(ctx)
    moving = moving_metric(ctx, t)
    evidence: dict[str, Any] = {"largest_change_of_a_sum": moved}
    if rates is not None and not rates.values.any() and moving is None and not moved:
        return speaks("the learning rate is 0 in every row", **evidence, rows=len(rates))
    if grads is not None:
        zero = np.abs(grads.values) <= t["dead_grad_norm"]
        evidence |= {"rows": len(grads), "rows_without_gradient": int(zero.sum()), "first_step": grads.steps[0]}
        if zero.all() and (moving is not None or moved):
            return silent(
                f"grad_norm is logged as 0, but {moving or 'log-probs'} moved: the logged number is wrong", **evidence
            )
        if zero.all():
            return speaks(f"grad_norm is 0 in all {len(grads)} rows: nothing is trained", **evidence)
        tail = len(zero) - int(np.flatnonzero(~zero)[-1]) - 1
        if tail >= max(LEAST_FOR_T, t["dead_min_share"] * len(zero)) and at_floor(ctx, t) is None:
            return speaks(
                f"grad_norm is 0 from {ctx.info.at(grads.steps[-tail])} on, and the loss is not at its floor",
                **evidence,
            )
    if moved == 0.0 and len(ctx.pairs.own_steps) == 1:
        return speaks("not one log-prob differs from the reference's: the checkpoint is its reference", **evidence)
    if moved == 0.0:
        return speaks("not one log-prob of the fixed set changed between the first and the last step", **evidence)
    if grads is None and moved is None:
        constant = _constant_means(ctx)
        if constant is None:
            raise Missing("neither grad_norm nor a fixed set at two steps is recorded")
        if constant:
            return speaks("every metric of the fixed set is the same at all steps", **evidence)
    return silent("gradients flow, or log-probs move", **evidence)


def _largest_change(ctx: CheckContext) -> float | None:
    """Largest change of any sum over the measured steps of a fixed set (nats); None where there is no such set.

    Between two steps of the policy where there are two: the reference's numbers may differ by rounding.
    """
    own = ctx.maybe(lambda: ctx.pairs.own_steps) or []
    change = ctx.maybe(ctx.pairs.change, own[0] if len(own) > 1 else None)
    if change is None:
        return None
    before, after = (frame[["chosen_sum_logp", "rejected_sum_logp"]].to_numpy() for frame in change)
    return float(np.abs(after - before).max())


def _constant_means(ctx: CheckContext) -> bool | None:
    """Whether all metrics of a fixed set stay the same over three evaluations or more; None if there are not three."""
    for split in ctx.logged.fixed_splits:
        curves = [
            ctx.logged.find(n, split, LEAST_FOR_T) for n in ("loss", "rewards/chosen", "logps/chosen", "ce/chosen")
        ]
        known = [curve.values for curve in curves if curve is not None]
        if known:
            return all(float(np.ptp(values)) == 0.0 for values in known)
    return None


register(
    Check(
        code="DVG008",
        title="dead run",
        says="Nothing is trained: the gradient norm is 0 in every row or from some step on, the learning rate is 0, or "
        "not one log-prob of a fixed set changed.",
        why="The run costs as much as a good one and its checkpoint is the model it started from. Every other number "
        "is then noise.",
        needs="grad_norm, or a fixed set at two steps",
        severity="error",
        evidence={
            "largest_change_of_a_sum": "largest change of a pair's summed log-prob, nats; null without pairs",
            "rows": "logged rows",
            "rows_without_gradient": "rows whose gradient norm is 0",
            "first_step": "step of the first row",
        },
        false_alarms=("a launcher that logs a gradient norm of 0: silent where the loss or a margin moves",),
        bad=Example(
            "Twenty rows with a gradient norm of 0 and a loss that only jitters.",
            train={"loss": 0.61 + noise(20, 0.005), "grad_norm": [0.0] * 20},
        ),
        good=Example(
            "The same loss with a gradient norm of 0.3.",
            train={"loss": 0.61 + noise(20, 0.005), "grad_norm": [0.3] * 20},
        ),
        try_next=(
            "check requires_grad of the adapter's weights, the optimizer's parameter list, the gradient scaler and "
            "gradient checkpointing with a frozen embedding",
        ),
        sources=(),
        since="0.1.0",
        function=dead,
        reads=("confidence", "dead_grad_norm", "dead_min_share", *FLOOR_READS),
    )
)
