"""Values that follow exactly from logged ones, and only those; each is written with `derived` = true.

- `ref_logps/<side>` = logps - rewards / beta (sum-log-prob losses). On the evaluations of one fixed set it must
  be constant: that checks beta, or finds it where nobody says it.
- `preference_loss` = loss - weight x nll_loss, where the first row shows that it starts at ln 2.
- `ce/<side>` = -logps where logps are means over tokens; `ppl_seq_geomean/<side>` = exp(ce).
- `rewards/margins` = rewards/chosen - rewards/rejected where it is not logged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpo_diag.importers.merged import Column, History
from dpo_diag.records.schemas import TRAIN_SPLIT

SIDES = ("chosen", "rejected")
LN2 = math.log(2.0)


@dataclass
class BetaCheck:
    """What the constancy of the reference says about beta.

    `beta` is the value checked, or found (`found` = True). `spread` is the largest deviation of the derived reference
    log-prob from its median, in nats; `constant` compares it with the log's own rounding.
    """

    split: str
    beta: float
    found: bool
    constant: bool
    spread: float
    reference: dict[str, float]
    evaluations: int

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def find_beta(history: History, split: str) -> float | None:
    """beta as the slope of rewards over logps on a fixed set: only where it fits to the log's rounding."""
    changes_l, changes_r, size, shortest = [], [], 0.0, 10**9
    for side in SIDES:
        logps, rewards = history.column(split, f"logps/{side}"), history.column(split, f"rewards/{side}")
        if logps is None or rewards is None:
            return None
        common, reward = logps.at_common_steps(rewards)
        good = np.isfinite(common.value) & np.isfinite(reward)
        value, reward = common.value[good], reward[good]
        if len(value) < 3:
            return None
        size, shortest = max(size, float(np.abs(value).max())), min(shortest, len(value))
        changes_l.append(value - value.mean())
        changes_r.append(reward - reward.mean())
    moved, reward = np.concatenate(changes_l), np.concatenate(changes_r)
    if float(np.abs(moved).max()) < 1e-3 * size or not float((moved**2).sum()) > 0:
        return None
    slope = float((moved * reward).sum() / (moved**2).sum())
    if slope <= 0:
        return None
    left = np.abs(reward - slope * moved).max() / slope
    if left > 1e-3 * size + 1e-6 or left > 0.05 * float(np.abs(moved).max()):
        return None
    rounded = float(f"{slope:.2g}")
    return rounded if abs(rounded - slope) <= 0.01 * slope else slope


def check_beta(history: History, beta: float | None) -> BetaCheck | None:
    """Check beta on the fixed set with most evaluations, or find it there; None where no set allows it."""
    best: BetaCheck | None = None
    for split in history.splits():
        if split == TRAIN_SPLIT:
            continue
        value = beta if beta is not None else find_beta(history, split)
        if value is None or value <= 0:
            continue
        columns = {side: reference_logps(history, split, side, value) for side in SIDES}
        if any(c is None for c in columns.values()):
            continue
        finite = {s: c.value[np.isfinite(c.value)] for s, c in columns.items() if c is not None}
        count = min(len(v) for v in finite.values())
        if count < 2 or (best is not None and best.evaluations >= count):
            continue
        middle = {s: float(np.median(v)) for s, v in finite.items()}
        spread = max(float(np.abs(v - middle[s]).max()) for s, v in finite.items())
        # The log's own rounding: four digits of logps, four of rewards / beta.
        rounding = max(5e-4 * abs(m) for m in middle.values()) + 5e-4 * _largest_reward(history, split) / value + 1e-4
        best = BetaCheck(split, value, beta is None, spread <= 2 * rounding, spread, middle, count)
    return best


def _largest_reward(history: History, split: str) -> float:
    found = 0.0
    for side in SIDES:
        column = history.column(split, f"rewards/{side}")
        if column is not None and np.isfinite(column.value).any():
            found = max(found, float(np.nanmax(np.abs(column.value))))
    return found


def reference_logps(history: History, split: str, side: str, beta: float) -> Column | None:
    """logps - rewards / beta at the steps that have both."""
    logps, rewards = history.column(split, f"logps/{side}"), history.column(split, f"rewards/{side}")
    if logps is None or rewards is None:
        return None
    common, reward = logps.at_common_steps(rewards)
    if len(common.step) == 0:
        return None
    reference = common.value - reward / beta
    with np.errstate(invalid="ignore"):
        if np.nanmax(np.abs(reference), initial=0.0) <= 1e-3 * np.nanmax(np.abs(common.value), initial=0.0):
            return None  # rewards = beta x logps: a loss without a reference (ORPO, SimPO)
    return Column(common.step, common.epoch, reference, derived=True)


def nll_weight_at_start(history: History, weight: float | None) -> float | None:
    """The weight w for which loss - w x nll_loss starts at ln 2: the given one, else 1, checked on the first row.

    The first row is a mean over the first logging interval: a sigmoid loss lies below ln 2 by about half its margin.
    """
    loss, nll = history.column(TRAIN_SPLIT, "loss"), history.column(TRAIN_SPLIT, "nll_loss")
    if loss is None or nll is None:
        return None
    common, nll_value = loss.at_common_steps(nll)
    if len(common.step) == 0:
        return None
    margin = history.column(TRAIN_SPLIT, "rewards/margins")
    first_margin = float(margin.value[0]) if margin is not None and len(margin.value) else 0.0
    candidate = 1.0 if weight is None else weight
    start = float(common.value[0] - candidate * nll_value[0])
    return candidate if abs(start - (LN2 - first_margin / 2)) <= 0.01 + abs(first_margin) / 4 else None


def derive(
    history: History, beta: float | None, reduction: str, nll_weight: float | None
) -> dict[tuple[str, str], Column]:
    """All derived columns by (split, name); names that a source logs itself are never overwritten."""
    out: dict[tuple[str, str], Column] = {}

    def put(split: str, name: str, column: Column | None) -> None:
        if column is not None and len(column.step) and not history.has(split, name):
            column.derived = True
            out[split, name] = column

    for split in history.splits():
        for side in SIDES:
            if beta:
                put(split, f"ref_logps/{side}", reference_logps(history, split, side, beta))
            if reduction == "mean" and (logps := history.column(split, f"logps/{side}")) is not None:
                put(split, f"ce/{side}", Column(logps.step, logps.epoch, -logps.value))
            ce = history.column(split, f"ce/{side}") or out.get((split, f"ce/{side}"))
            if ce is not None:
                with np.errstate(over="ignore"):
                    put(split, f"ppl_seq_geomean/{side}", Column(ce.step, ce.epoch, np.exp(ce.value)))
        chosen, rejected = history.column(split, "rewards/chosen"), history.column(split, "rewards/rejected")
        if chosen is not None and rejected is not None and not history.has(split, "rewards/margins"):
            common, other = chosen.at_common_steps(rejected)
            put(split, "rewards/margins", Column(common.step, common.epoch, common.value - other))
        loss, nll = history.column(split, "loss"), history.column(split, "nll_loss")
        if nll_weight is not None and loss is not None and nll is not None:
            common, value = loss.at_common_steps(nll)
            put(split, "preference_loss", Column(common.step, common.epoch, common.value - nll_weight * value))
    return out
