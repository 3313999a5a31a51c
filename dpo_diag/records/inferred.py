"""What the logged means of a run say about its loss where nothing names it: asked once, when the run is written.

All functions take history rows (columns step, split, name, value) under our metric names, and answer None where the
rows do not decide. Rows that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.records.run_info import Reduction
from dpo_diag.records.schemas import SIDES
from dpo_diag.records.splits import preferred, role_from_name

FloatArray = npt.NDArray[np.float64]

NAMES = (
    "loss",
    "nll_loss",
    "rewards/margins",
    *(f"{q}/{s}" for q in ("rewards", "logps", "mean_logps") for s in SIDES),
)
"""The metrics that are read; a caller need not hand over others."""

LEAST_ON_A_CURVE = 5
"""Rows that must lie on a loss's own curve: so many do not by chance."""
LARGEST_MEAN_LOGP = 8.0
"""nats: a mean log-prob per token below -8 is worse than a uniform guess over 3,000 tokens, so larger ones are sums."""


@dataclass(frozen=True)
class Inferred:
    """Facts that follow from the logged means; None where they do not decide.

    Attributes:
        free_by: what shows that the rewards hold no reference.
    """

    logps: Reduction | None = None
    free_by: str | None = None
    loss_like: str | None = None
    beta: float | None = None

    @property
    def reference_free(self) -> bool:
        """Whether the rewards hold no reference, as far as the rows show."""
        return self.free_by is not None

    def run_fields(self) -> dict[str, Any]:
        """The fields of run.json that these facts are, where no import decides more."""
        return {name: getattr(self, name) for name in ("logps", "reference_free", "loss_like", "beta")}


def infer(history: pd.DataFrame, beta: float | None = None) -> Inferred:
    """All that the rows decide; an empty history decides nothing.

    Args:
        beta: where the source states it.
    """
    rows = history.loc[history["name"].isin(NAMES) & np.isfinite(history["value"].astype(np.float64))]
    if rows.empty:
        return Inferred()
    rows = rows.assign(split=rows["split"].astype(str), name=rows["name"].astype(str))
    rows = rows.drop_duplicates(["step", "split", "name"], keep="last").sort_values("step", kind="stable")
    if (free_by := _free_by(rows)) is not None:
        return Inferred(_reduction(rows), free_by)
    of_rewards = _beta(rows)
    loss_like, of_loss = _loss_like(rows, beta or of_rewards)
    return Inferred(_reduction(rows), None, loss_like, of_rewards or of_loss)


def _aligned(rows: pd.DataFrame, split: str, names: Sequence[str]) -> FloatArray | None:
    """Values at the steps that have all of `names`, shape (steps, names); None below three such steps."""
    wide = rows.loc[(rows["split"] == split) & rows["name"].isin(names)].pivot(
        index="step", columns="name", values="value"
    )
    if not set(names) <= set(wide.columns):
        return None
    values: FloatArray = wide[list(names)].dropna().to_numpy(dtype=np.float64)
    return values if len(values) >= 3 else None


def _splits(rows: pd.DataFrame) -> list[str]:
    return preferred((str(s) for s in rows["split"].unique()), role_from_name)


def _reduction(rows: pd.DataFrame) -> Reduction | None:
    """ "sum" where the log-probs are too large for token means; small ones may be either."""
    logps = rows.loc[rows["name"] == "logps/chosen"]
    if logps.empty:
        return None
    longest = logps["split"].value_counts().index[0]
    size = float(logps.loc[logps["split"] == longest, "value"].abs().median())
    return "sum" if size >= LARGEST_MEAN_LOGP else None


def _free_by(rows: pd.DataFrame) -> str | None:
    if _is_logps(rows):
        return "rewards / logps is the same in every row: no reference in the rewards"
    if (gamma := _target_margin(rows)) is not None:
        return f"loss = softplus({gamma:.2g} - margins) in every row, and all rewards are negative: SimPO's form"
    return None


def _target_margin(rows: pd.DataFrame) -> float | None:
    """SimPO's gamma where log-probs are not logged: loss = softplus(gamma - margin), with negative rewards throughout.

    Inverting that of the rows' means gives gamma and a bit more (Jensen), nearly the same in every row; the sigmoid
    loss gives Jensen's term alone, which is near 0 at a run's start, or with a wrong reference differs a lot from row
    to row (simulated: 10 % to 90 % range at least half its median; SimPO's at most 0.4 of it down to batches of 4).
    """
    names = ["loss", "rewards/chosen", "rewards/rejected"]
    for split in _splits(rows):
        values = _aligned(rows, split, names)
        if values is None or len(values) < 12 or ((rows["split"] == split) & (rows["name"] == "nll_loss")).any():
            continue
        loss, chosen, rejected = values.T
        if max(chosen.max(), rejected.max()) >= 0 or loss.min() <= 0:
            return None
        # log(exp(x) - 1), without overflow
        gamma = loss + np.log(-np.expm1(-loss)) + chosen - rejected
        low, middle, high = np.quantile(gamma, [0.1, 0.5, 0.9])
        return float(middle) if low > 0.3 and high - low < 0.4 * middle else None
    return None


def _is_logps(rows: pd.DataFrame) -> bool:
    """Whether rewards / logps is the same in every row, on both sides: beta times the log-prob itself (ORPO, SimPO)."""
    ratios = []
    for side in SIDES:
        logged = (
            _aligned(rows, split, [f"rewards/{side}", f"{logps}/{side}"])
            for logps in ("mean_logps", "logps")
            for split in _splits(rows)
        )
        both = next((values for values in logged if values is not None), None)
        if both is None:
            return False
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = both[:, 0] / both[:, 1]
        ratios.append(ratio[np.isfinite(ratio)])
    every = np.concatenate(ratios)
    # Two per cent: the log's rounding to four digits, on rewards as small as 0.05.
    middle = float(np.median(every)) if every.size >= 6 else 0.0
    return bool(middle > 0 and np.abs(every / middle - 1).max() < 0.02)


def _loss_like(rows: pd.DataFrame, beta: float | None) -> tuple[str | None, float | None]:
    """(the formula that the loss follows, the beta that it shows): "hinge", "ipo" or "sigmoid".

    "sigmoid" where the loss follows softplus(-margin). Jensen: the mean loss is never below softplus(-mean margin), but
    for rounding, and lies above it by an eighth of the margins' variance. An SFT term shifts every row.

    Args:
        beta: where it is known; ipo must show the same one.
    """
    for split in _splits(rows):
        values = _aligned(rows, split, ["loss", "rewards/margins"])
        if values is None or ((rows["split"] == split) & (rows["name"] == "nll_loss")).any():
            continue
        loss, margin = values.T
        if _is_hinge(loss, margin):
            return "hinge", None
        if (of_ipo := _ipo_beta(loss, margin)) is not None and (beta is None or abs(of_ipo / beta - 1) < 0.02):
            return "ipo", of_ipo
        gap = loss - np.logaddexp(0.0, -margin)
        return ("sigmoid" if np.quantile(gap, 0.1) > -0.02 and np.median(gap) < 0.3 else None), None
    return None, None


def _is_hinge(loss: FloatArray, margin: FloatArray) -> bool:
    """Whether loss = 1 - margin at margins that moved, as where no pair is past a margin of 1, and never below that.

    The slope decides: the sigmoid's is -1/2 at a margin of 0, so that an NLL term that lifts its start to 1 meets the
    line in one point.
    """
    gap = loss - np.maximum(1.0 - margin, 0.0)
    on_it = (np.abs(gap) <= 0.005) & (margin < 1.0)
    return bool(gap.min() > -0.02 and on_it.sum() >= LEAST_ON_A_CURVE and np.ptp(margin[on_it]) >= 0.05)


def _ipo_beta(loss: FloatArray, margin: FloatArray) -> float | None:
    """beta where loss = (margin - 1/2)^2 / beta^2 at margins that moved: TRL's IPO, whose rewards are beta times mean
    log-ratios. The quotient is then 1 / beta^2 in every row (plus the margins' variance), and beta a round number."""
    far = np.abs(margin - 0.5) > 0.1  # nearer to its target the quotient is mostly scatter
    if far.sum() < LEAST_ON_A_CURVE or loss.min() < 0 or np.ptp(loss[far]) < 0.05 * loss.max():
        return None
    quotient = loss[far] / (margin[far] - 0.5) ** 2
    middle = float(np.median(quotient))
    if not middle > 0:  # most losses are 0: far beyond their margins' target an ipo loss is not
        return None
    beta = 1.0 / math.sqrt(middle)
    rounded = float(f"{beta:.2g}")
    return rounded if np.ptp(quotient) <= 0.02 * middle and abs(rounded / beta - 1) < 0.01 else None


def _beta(rows: pd.DataFrame) -> float | None:
    for split in _splits(rows):
        # A training batch has other pairs at each step, so that the reference is no constant there.
        if role_from_name(split) == "train":
            continue
        sides = [_aligned(rows, split, [f"logps/{side}", f"rewards/{side}"]) for side in SIDES]
        if (beta := beta_of_fixed_set([values for values in sides if values is not None])) is not None:
            return beta
    return None


def beta_of_fixed_set(sides: Sequence[FloatArray]) -> float | None:
    """beta as the slope of rewards over log-probs (logps = reference + rewards / beta), to the log's own rounding.

    Args:
        sides: one array a side, (evaluations, 2): logps and rewards of one fixed set.
    """
    known = [values[np.isfinite(values).all(axis=1)] for values in sides]
    points = sum(len(values) for values in known)
    # A line through all but one of its points fits anything; each side has an offset of its own.
    if not known or min(len(values) for values in known) < 3 or points < len(known) + 3:
        return None
    size = max(float(np.abs(values[:, 0]).max()) for values in known)
    change = np.concatenate([values - values.mean(axis=0) for values in known])
    logps, rewards = change[:, 0], change[:, 1]
    largest = float(np.abs(logps).max())
    if largest < 1e-3 * size or not (slope := float((logps * rewards).sum() / (logps**2).sum())) > 0:
        return None
    off = float(np.abs(rewards - slope * logps).max()) / slope
    if off > 1e-3 * size + 1e-6 or off > 0.05 * largest:
        return None
    # A beta is a round number; what the log's digits leave open goes to the nearest one of two digits.
    rounded = float(f"{slope:.2g}")
    return rounded if abs(rounded - slope) <= 0.01 * slope else slope
