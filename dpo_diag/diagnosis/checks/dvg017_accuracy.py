"""DVG017: the logged accuracy compares log-probs and ignores the reference, but is read as reward accuracy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.thresholds import Thresholds

LOGGED = ["rewards/chosen", "rewards/rejected", "rewards/accuracies"]
"""Rows below which margins and accuracy are not compared by sign."""


def accuracy(ctx: CheckContext, t: Thresholds) -> Outcome:
    """From pairs with a reference, else from logged rewards beside an accuracy."""
    if ctx.reference_free:
        raise Missing("this loss has no reference, so both accuracies are one")
    change = ctx.maybe(ctx.pairs.change)
    if change is not None and ctx.pairs.has_reference(change[1]):
        return _of_pairs(ctx, change[1], t)
    for split in ctx.logged.splits:
        rows = ctx.logged.together(LOGGED, split)
        outcome = None if rows is None else _of_means(rows, split, t)
        if outcome is not None:
            return outcome
    raise Missing("needs pairs with reference sums, or rewards beside an accuracy")


def _of_pairs(ctx: CheckContext, pairs: pd.DataFrame, t: Thresholds) -> Outcome:
    """Both accuracies of the pairs at the last step, beside the logged one."""
    a, b = ctx.pairs.ratios(pairs)
    step, near = ctx.pairs.steps[-1], t["accuracy_tolerance"]
    of_rewards = float((a > b).mean())
    of_logps = float((pairs["chosen_sum_logp"] > pairs["rejected_sum_logp"]).mean())
    evidence: dict[str, Any] = {
        "reward_accuracy": of_rewards, "accuracy_without_reference": of_logps, "pairs": len(pairs), "step": step,
    }  # fmt: skip
    logged = ctx.logged.find("rewards/accuracies", ctx.pairs.split)
    if logged is None:
        return silent("no accuracy is logged beside the pairs; both kinds are in the evidence", **evidence)
    value = float(logged.values[-1]) if logged.steps[-1] == step else math.nan
    evidence |= {"logged": value, "logged_as": logged.name}
    if abs(of_rewards - of_logps) <= 2 * near or not math.isfinite(value):
        return silent("the two accuracies agree, or were not logged at this step", **evidence)
    if abs(value - of_logps) <= near < abs(value - of_rewards):
        return speaks(
            f"the logged accuracy {value:.3f} is the one without the reference ({of_logps:.3f}); reward accuracy is "
            f"{of_rewards:.3f}",
            **evidence,
        )
    return silent("the logged accuracy is reward accuracy", **evidence)


def _of_means(rows: pd.DataFrame, split: str, t: Thresholds) -> Outcome | None:
    """Where all rewards are 0 every pair ties; elsewhere margins and accuracy must have one direction."""
    chosen, rejected, accuracies = rows[LOGGED].to_numpy().T
    ties = np.flatnonzero((chosen == 0) & (rejected == 0))
    if ties.size:
        value = float(accuracies[ties[0]])
        evidence: dict[str, Any] = {
            "split": split, "accuracy_at_zero_margin": value, "step": float(rows.index[ties[0]]),
        }  # fmt: skip
        if min(abs(value), abs(value - 0.5)) > t["accuracy_tolerance"]:
            return speaks(
                f"with all rewards 0 the accuracy is {value:.3f}: it compares log-probs, not rewards", **evidence
            )
        return silent("with all rewards 0 the accuracy is that of ties", **evidence)
    gains = chosen - rejected
    spread = float(np.std(gains))
    if gains.size < t["accuracy_min_rows"] or spread == 0.0:
        return None
    # Rows whose margin is large enough that its sign is the majority's.
    against = int(((np.abs(gains) > spread) & (np.sign(gains) != np.sign(accuracies - 0.5))).sum())
    if against > 0.5 * gains.size:
        return speaks("margins and accuracy point in opposite directions", rows=against, of=gains.size)
    return silent("accuracy and margins are consistent in sign", rows=gains.size)


_REFERENCE = np.full(40, -10.0), np.where(np.arange(40) < 36, -20.0, -5.0)
_MOVED = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)


def _example(shows: str, logged: float) -> Example:
    """Chosen is likelier than rejected in 90 % of pairs, the margin over the reference is positive in 50 %."""
    return Example(
        shows,
        pairs={0: _REFERENCE, 5: (_REFERENCE[0], _REFERENCE[1] + _MOVED)},
        reference=_REFERENCE,
        fixed={"rewards/accuracies": [logged, logged]},
    )


register(
    Check(
        code="DVG017",
        title="accuracy that ignores the reference",
        says="The accuracy that is logged as reward accuracy counts pairs whose chosen response is likelier than the "
        "rejected one, without the reference.",
        why="That number is high or low before training and hardly moves, whatever DPO does. Reward accuracy, "
        "with the reference, is 0 or one half at the start and is what the loss works on.",
        needs="pairs with reference sums, or rewards beside an accuracy",
        severity="warning",
        evidence={
            "reward_accuracy": "share of pairs whose margin over the reference is positive",
            "accuracy_without_reference": "share of pairs whose chosen response is likelier",
            "pairs": "pairs behind both",
            "step": "step that was looked at",
            "logged": "the logged accuracy at that step; null where there is none",
            "logged_as": "the metric's name",
            "split": "means: the split that was read",
            "accuracy_at_zero_margin": "means: accuracy in a row in which all rewards are 0",
            "rows": "means: rows compared (speaks: rows in which margin and accuracy disagree)",
            "of": "means: rows compared",
        },
        false_alarms=("a log whose rewards are rounded to 0 in the first rows",),
        bad=_example("The logged accuracy is 0.9, that of the log-probs; reward accuracy is 0.5.", 0.9),
        good=_example("The logged accuracy is 0.5, reward accuracy.", 0.5),
        try_next=("read rewards/accuracies (rewards, reference included) for DPO",),
        sources=(),
        since="0.1.0",
        function=accuracy,
        reads=("accuracy_tolerance", "accuracy_min_rows"),
    )
)
