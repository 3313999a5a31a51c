"""What the logged means of a run say about its loss where nothing names it: asked once, when the run is written.

All functions take history rows (columns step, split, name, value) under our metric names, and answer None where the
rows do not decide. Rows that are not finite are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.records.run_info import Reduction
from dpo_diag.records.schemas import SIDES
from dpo_diag.records.splits import preferred, role_from_name

FloatArray = npt.NDArray[np.float64]

NAMES = ("loss", "nll_loss", "rewards/margins", *(f"{q}/{s}" for q in ("rewards", "logps") for s in SIDES))
"""The metrics that are read; a caller need not hand over others."""

LARGEST_MEAN_LOGP = 8.0
"""nats: a mean log-prob per token below -8 is worse than a uniform guess over 3,000 tokens, so larger ones are sums."""


@dataclass(frozen=True)
class Inferred:
    """Facts that follow from the logged means; None where they do not decide."""

    logps: Reduction | None = None
    reference_free: bool = False
    loss_like: str | None = None
    beta: float | None = None


def without_reference(*texts: str) -> bool:
    """Whether a source names a loss whose rewards hold no reference."""
    return any(re.search(r"\b(orpo|simpo|cpo|reference[ _-]free)\b", text.lower()) for text in texts)


def infer(history: pd.DataFrame) -> Inferred:
    """All that the rows decide; an empty history decides nothing."""
    rows = history.loc[history["name"].isin(NAMES) & np.isfinite(history["value"].astype(np.float64))]
    if rows.empty:
        return Inferred()
    rows = rows.assign(split=rows["split"].astype(str), name=rows["name"].astype(str))
    rows = rows.drop_duplicates(["step", "split", "name"], keep="last").sort_values("step", kind="stable")
    return Inferred(_reduction(rows), _reference_free(rows), _loss_like(rows), _beta(rows))


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


def _reference_free(rows: pd.DataFrame) -> bool:
    """Whether rewards / logps is the same in every row, on both sides: beta times the log-prob itself (ORPO, SimPO)."""
    ratios = []
    for side in SIDES:
        both = next(
            (v for s in _splits(rows) if (v := _aligned(rows, s, [f"rewards/{side}", f"logps/{side}"])) is not None),
            None,
        )
        if both is None:
            return False
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = both[:, 0] / both[:, 1]
        ratios.append(ratio[np.isfinite(ratio)])
    every = np.concatenate(ratios)
    # Two per cent: the log's rounding to four digits, on rewards as small as 0.05.
    middle = float(np.median(every)) if every.size >= 6 else 0.0
    return bool(middle > 0 and np.abs(every / middle - 1).max() < 0.02)


def _loss_like(rows: pd.DataFrame) -> str | None:
    """ "sigmoid" where the loss follows softplus(-margin).

    Jensen: the mean loss is never below softplus(-mean margin), but for rounding, and lies above it by an eighth of the
    margins' variance. Hinge and ipo differ at margin 0 already; an SFT term shifts every row.
    """
    for split in _splits(rows):
        values = _aligned(rows, split, ["loss", "rewards/margins"])
        if values is None or ((rows["split"] == split) & (rows["name"] == "nll_loss")).any():
            continue
        gap = values[:, 0] - np.logaddexp(0.0, -values[:, 1])
        return "sigmoid" if np.quantile(gap, 0.1) > -0.02 and np.median(gap) < 0.3 else None
    return None


def _beta(rows: pd.DataFrame) -> float | None:
    """1 / slope of logps over rewards on a fixed set (logps = ref + rewards / beta), where a line fits to 2 %."""
    for split in _splits(rows):
        values = _aligned(rows, split, ["logps/chosen", "rewards/chosen"])
        # A training batch has other pairs at each step, so that ref is no constant there.
        if role_from_name(split) == "train" or values is None or values[:, 1].std(ddof=1) < 1e-6:
            continue
        slope, offset = np.polyfit(values[:, 1], values[:, 0], 1)
        residual = values[:, 0] - (slope * values[:, 1] + offset)
        if slope > 0 and residual.std(ddof=1) < 0.02 * values[:, 0].std(ddof=1):
            return float(1 / slope)
    return None
