"""Values that follow exactly from logged ones, and only those; each is written with `derived` = true.

- `ref_logps/<side>` = logps - rewards / beta (sum-log-prob losses). On the evaluations of one fixed set it must
  be constant: that checks beta, or finds it where nobody says it.
- `preference_loss` = loss - weight x nll_loss, where the first row shows that it starts at ln 2.
- `ce/<side>` = -mean_logps, or -logps where those are means over tokens; `ppl_seq_geomean/<side>` = exp(ce).
- `rewards/margins` = rewards/chosen - rewards/rejected where it is not logged.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.importers.merged import History, Key
from dpo_diag.records.inferred import beta_of_fixed_set
from dpo_diag.records.run_info import Reduction
from dpo_diag.records.schemas import SIDES, TRAIN_SPLIT

LN2 = math.log(2.0)
_ROUNDING = 5e-4
"""Relative error of a value that is logged with four digits."""


@dataclass
class BetaCheck:
    """What the constancy of the reference says about beta.

    Attributes:
        beta: the value checked, or `found` as the slope of rewards over logps.
        spread: largest deviation of the derived reference log-prob from its median, nats.
        constant: whether that lies within the log's own rounding.
        reference: side -> median of the derived reference log-prob, nats.
    """

    split: str
    beta: float
    found: bool
    constant: bool
    spread: float
    reference: dict[str, float]
    evaluations: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _sides(history: History, split: str) -> dict[str, pd.DataFrame]:
    """side -> rows of step, epoch, logps, rewards, of the sides that have both."""
    rows = {side: history.aligned(split, f"logps/{side}", f"rewards/{side}") for side in SIDES}
    names = ["step", "epoch", "logps", "rewards"]
    return {side: frame.set_axis(names, axis=1) for side, frame in rows.items() if frame is not None}


def check_beta(history: History, beta: float | None) -> BetaCheck | None:
    """Check beta on the fixed set with most evaluations, or find it there; None where no set allows it."""
    best: BetaCheck | None = None
    for split in history.splits():
        # A training batch has other pairs at each step: its reference is no constant.
        sides = _sides(history, split) if split != TRAIN_SPLIT else {}
        points = [rows[["logps", "rewards"]].to_numpy() for rows in sides.values()]
        value = beta if beta is not None else beta_of_fixed_set(points)
        if value is None or value <= 0 or len(sides) < len(SIDES):
            continue
        references = {side: _reference(rows, value) for side, rows in sides.items()}
        finite = {s: rows["value"][np.isfinite(rows["value"])] for s, rows in references.items() if rows is not None}
        count = min((len(values) for values in finite.values()), default=0)
        if len(finite) < len(SIDES) or count < 2 or (best is not None and best.evaluations >= count):
            continue
        middle = {side: float(values.median()) for side, values in finite.items()}
        spread = max(float((values - middle[side]).abs().max()) for side, values in finite.items())
        rewards = pd.concat([rows["rewards"] for rows in sides.values()]).abs()
        largest = float(rewards.max()) if rewards.notna().any() else 0.0
        rounding = _ROUNDING * (max(map(abs, middle.values())) + largest / value) + 1e-4
        best = BetaCheck(split, value, beta is None, spread <= 2 * rounding, spread, middle, count)
    return best


def _reference(rows: pd.DataFrame, beta: float) -> pd.DataFrame | None:
    """logps - rewards / beta as rows of step, epoch, value; None for a loss without a reference (ORPO, SimPO)."""
    value = rows["logps"] - rows["rewards"] / beta
    # rewards = beta x logps leaves nothing but rounding.
    if rows.empty or not value.abs().max() > 1e-3 * np.nan_to_num(rows["logps"].abs().max()):
        return None
    return _column(rows, value)


def _column(rows: pd.DataFrame, value: pd.Series[float]) -> pd.DataFrame:
    return rows[["step", "epoch"]].assign(value=value)


def nll_weight_at_start(history: History, weight: float | None) -> float | None:
    """The weight w for which loss - w x nll_loss starts at ln 2: the given one, else 1, checked on the first row.

    The first row is a mean over the first logging interval: a sigmoid loss lies below ln 2 by about half its margin.
    """
    rows = history.aligned(TRAIN_SPLIT, "loss", "nll_loss")
    if rows is None or rows.empty:
        return None
    margins = history.column(TRAIN_SPLIT, "rewards/margins")
    first_margin = float(margins["value"].iloc[0]) if margins is not None else 0.0
    candidate = 1.0 if weight is None else weight
    start = float(rows["loss"].iloc[0] - candidate * rows["nll_loss"].iloc[0])
    return candidate if abs(start - (LN2 - first_margin / 2)) <= 0.01 + abs(first_margin) / 4 else None


def margins(history: History) -> dict[Key, pd.DataFrame]:
    """rewards/margins where both rewards are logged and it is not."""
    out: dict[Key, pd.DataFrame] = {}
    logged = set(history.metrics())
    for split in history.splits():
        rewards = history.aligned(split, "rewards/chosen", "rewards/rejected")
        if rewards is not None and len(rewards) and (split, "rewards/margins") not in logged:
            difference = rewards["rewards/chosen"] - rewards["rewards/rejected"]
            out[split, "rewards/margins"] = _column(rewards, difference)
    return out


def derive(
    history: History, beta: float | None, reduction: Reduction | None, nll_weight: float | None
) -> dict[Key, pd.DataFrame]:
    """All other derived columns by (split, name); names that a source logs itself are never overwritten."""
    out: dict[Key, pd.DataFrame] = {}
    logged = set(history.metrics())

    def put(split: str, name: str, rows: pd.DataFrame | None) -> None:
        if rows is not None and len(rows) and (split, name) not in logged:
            out[split, name] = rows

    for split in history.splits():
        for side, rows in _sides(history, split).items() if beta else ():
            put(split, f"ref_logps/{side}", _reference(rows, beta or math.nan))
        for side in SIDES:
            logps = history.column(split, f"mean_logps/{side}")
            if logps is None and reduction == "mean":
                logps = history.column(split, f"logps/{side}")
            if logps is not None:
                put(split, f"ce/{side}", _column(logps, -logps["value"]))
            ce = history.column(split, f"ce/{side}")
            ce = out.get((split, f"ce/{side}")) if ce is None else ce
            if ce is not None:
                with np.errstate(over="ignore"):
                    put(split, f"ppl_seq_geomean/{side}", _column(ce, np.exp(ce["value"])))
        losses = history.aligned(split, "loss", "nll_loss")
        if losses is not None and nll_weight is not None:
            put(split, "preference_loss", _column(losses, losses["loss"] - nll_weight * losses["nll_loss"]))
    return out
