"""The course of the loss: whether it ends at its floor, and whether anything was trained at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.logged import Series
from dpo_diag.ends import LEAST_ROWS
from dpo_diag.stats import LEAST_FOR_T
from dpo_diag.thresholds import Thresholds

FLOOR_READS = (
    "saturation_share", "saturation_stays", "saturation_won", "saturation_last_share", "smoothing_min", "smoothing_max",
    "smoothing_max_spread",
)  # fmt: skip
"""Thresholds that `at_floor` reads."""
FLOOR_EVIDENCE: Mapping[str, str] = {
    "split": "the split whose loss was read",
    "last_loss": "median loss of the last fifth of its rows",
    "floor": "the smallest value that the loss can take",
    "floor_because": "where the floor comes from",
    "since_step": "step from which on nine tenths of the rows are there",
    "share_of_rows_there": "share of all its rows there",
    "rows": "its rows",
    "rows_there": "its rows there",
    "rows_since": "its rows from since_step on",
    "rows_there_since": "those of them there",
}


@dataclass(frozen=True)
class AtFloor:
    """A loss that ends at its floor; the fields are those of `FLOOR_EVIDENCE`."""

    split: str
    last_loss: float
    floor: float
    floor_because: str
    since_step: float
    share_of_rows_there: float
    rows: int
    rows_there: int
    rows_since: int
    rows_there_since: int

    def evidence(self) -> dict[str, Any]:
        """As `FLOOR_EVIDENCE` says."""
        return asdict(self)


def at_floor(ctx: CheckContext, t: Thresholds) -> AtFloor | None:
    """Where the loss of the training batches or of a fixed set ends at its floor; None where neither does."""
    # A reference-free log-sigmoid loss has floor 0 too; any other unknown loss does not come near it.
    floor = 0.0 if ctx.reference_free else ctx.start.floor
    start = ctx.start.value if math.isfinite(ctx.start.value) else math.log(2)
    near = t["saturation_share"] * (start - (floor or 0.0))
    for series in (
        ctx.maybe(ctx.logged.training, "loss", LEAST_FOR_T),
        ctx.maybe(ctx.logged.fixed, "loss", LEAST_FOR_T),
    ):
        # A loss with an NLL term has no floor that it could reach.
        if series is None or ctx.logged.find("nll_loss", series.split) is not None:
            continue
        # A loss of 0 beside rewards that are NaN is a lost batch (transformers logs 0 for it), not one that is won.
        series = ctx.logged.whole_rows(series)
        if len(series) < 3:
            continue
        lowest, why = _floor(ctx, series, floor, t)
        last = float(np.median(series.values[-max(2, int(len(series) * t["saturation_last_share"])) :]))
        if lowest is None or last - lowest > near:
            continue
        there = series.values - lowest <= near
        later = np.cumsum(there[::-1])[::-1] / np.arange(there.size, 0, -1)
        stays = np.flatnonzero(there & (later >= t["saturation_stays"]))
        first = int(stays[0] if stays.size else np.flatnonzero(there)[-1])
        return AtFloor(
            series.split, last, lowest, why, float(series.steps[first]), float(there.mean()),
            there.size, int(there.sum()), there.size - first, int(there[first:].sum()),
        )  # fmt: skip
    return None


def _floor(ctx: CheckContext, series: Series, known: float | None, t: Thresholds) -> tuple[float | None, str]:
    """The loss's floor; where the loss is unknown, a label smoothing that the numbers themselves show.

    With smoothing eps, loss = softplus(-m) + eps m for every pair of margin m: where all pairs are won and the loss
    is flat, (loss - softplus(-m)) / m is eps, the same in every row.
    """
    if known is None or ctx.info.loss is not None:
        return known, ctx.start.reason
    frame = ctx.logged.together(["loss", "rewards/margins", "rewards/accuracies"], series.split)
    if frame is not None and len(frame) >= LEAST_ROWS:
        loss, margin, accuracy = frame.iloc[len(frame) // 2 :].to_numpy().T
        # Below a margin of 1 nat the quotient is mostly the spread of the margins.
        if accuracy.min() >= t["saturation_won"] and margin.min() > 1.0:
            eps = (loss - np.log1p(np.exp(-margin))) / margin
            middle = float(np.median(eps))
            if t["smoothing_min"] < middle < t["smoothing_max"] and np.ptp(eps) < t["smoothing_max_spread"] * middle:
                floor = -(1 - middle) * math.log1p(-middle) - middle * math.log(middle)
                return floor, f"label smoothing {middle:.3g}, inferred from loss and margins"
    return known, ctx.start.reason


def moving_metric(ctx: CheckContext, t: Thresholds) -> str | None:
    """A metric of the training batches that changed beyond noise: some trainers log a gradient norm or rate of 0."""
    for name in ("loss", "rewards/margins", "rewards/chosen"):
        series = ctx.maybe(ctx.logged.training, name)
        trend = None if series is None else series.ends(t["confidence"])
        if trend is not None and (trend.change.above or trend.change.below):
            return name
    return None


def no_gradient(ctx: CheckContext) -> bool:
    """Whether grad_norm is logged, and 0 in every row."""
    grads = ctx.maybe(ctx.logged.training, "grad_norm", LEAST_FOR_T)
    return grads is not None and not grads.values.any()
