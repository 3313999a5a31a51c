"""Where a series of logged rows began and ended: the one definition for whatever compares or prints its two ends.

Training rows scatter with their batches, so a level is the mean of the first or last quarter of them and never called a
row; an evaluation is a row. Where the reference's own value is known, a run that logged nothing before its first step
began there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_diag.stats import LEVEL, FloatArray, Interval, no_interval, noise_sd, t_quantile

QUARTER = 0.25
_UNKNOWN = no_interval(math.nan, 0, LEVEL)
LEAST_ROWS = 6
"""Rows from which their noise can be told from where they went."""
REFERENCE_IS = "the reference"
FROM_DIFFERENCES = "first and last rows, noise from successive differences"
FROM_RANGE = "few rows, give or take half of their range"


@dataclass(frozen=True)
class Ends:
    """Where a series began and ended, and what the two numbers are; NaN for what is not known.

    Attributes:
        start, end: the two numbers that are compared; of one row there is no start but a known one, of none no end.
        start_is, end_is: what they are: "the reference", "the first row", "the mean of the last 3 of 6 rows".
        change: end less start; without bounds where nothing is known about the scatter.
        level: the end by itself; of two to five training rows give or take half of their range, which is no confidence
            interval: it says only that a level lies far from 0 beside all that the rows moved.
        first, first_step, last: the first row, its step (None where steps are not given), and the last row.
        k, rows: rows behind a mean, and all finite rows.
        sd: standard deviation of one training row around its trend; NaN below three.
        not_finite: rows that were left out.
    """

    start: float = math.nan
    end: float = math.nan
    start_is: str = ""
    end_is: str = ""
    change: Interval = _UNKNOWN
    level: Interval = _UNKNOWN
    first: float = math.nan
    first_step: int | None = None
    last: float = math.nan
    k: int = 0
    rows: int = 0
    sd: float = math.nan
    not_finite: int = 0

    def document(self) -> dict[str, Any]:
        """As the explanation holds it: null for what is not known."""
        numbers = {"from": self.start, "to": self.end, "delta": self.change.value, "first": self.first,
                   "last": self.last}  # fmt: skip
        document: dict[str, Any] = {
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "interval": self.change.bounds, "n_from": self.k, "n_to": self.k, "from_is": self.start_is,
            "to_is": self.end_is, "first_step": self.first_step, "rows": self.rows,
        }  # fmt: skip
        return document | ({"not_finite_rows": self.not_finite} if self.not_finite else {})


def ends_of(
    values: npt.ArrayLike,
    steps: npt.ArrayLike | None = None,
    *,
    batches: bool = True,
    reference: float | None = None,
    level: float = LEVEL,
    share: float = QUARTER,
) -> Ends:
    """Both ends of a series, whose values come in the order of their steps.

    Args:
        batches: rows are training batches: levels are means of rows; else each row is an evaluation.
        reference: the value that the run is known to have started from, used where no evaluation of step 0 is logged.
        share: of the rows, behind each mean.

    Intervals over batches: the noise is that between neighbouring rows, which a trend inside the averaged rows does not
    widen. The change has none below LEAST_ROWS rows, and none for evaluations.
    """
    x = np.asarray(values, dtype=np.float64)
    known = np.isfinite(x)
    at = np.zeros(0) if steps is None else np.asarray(steps)[known]
    lost, x = int((~known).sum()), x[known]
    if not x.size:
        return Ends(not_finite=lost)
    # Three rows are the least that have a scatter; two means must not overlap.
    k = max(int(x.size * share), min(3, x.size // 2), 1) if batches else 1
    start, end = float(x[:k].mean()), float(x[-k:].mean())
    sd = noise_sd(x) if batches else math.nan
    end_level, change = _intervals(x, k, sd, level, batches)
    start_is = "the first row" if k == 1 else f"the mean of the first {k} rows"
    end_is = "the last row" if k == 1 else f"the mean of the last {k} of {x.size} rows"
    if reference is not None and (batches or not at.size or at[0] > 0):
        start, start_is = reference, REFERENCE_IS
        told = x.size >= LEAST_ROWS
        change = end_level.shifted(-reference) if told else no_interval(end - reference, x.size, level)
    elif x.size == 1:
        start, start_is, end_is, change = math.nan, "", "the only row", no_interval(math.nan, 1, level)
    first_step = int(at[0]) if at.size else None
    return Ends(
        start, end, start_is, end_is, change, end_level, float(x[0]), first_step, float(x[-1]), k, int(x.size), sd, lost
    )


def _intervals(x: FloatArray, k: int, sd: float, level: float, batches: bool) -> tuple[Interval, Interval]:
    """(level at the end, change) of the means of k rows."""
    last, delta = float(x[-k:].mean()), float(x[-k:].mean() - x[:k].mean())
    if batches and x.size >= LEAST_ROWS:
        # n / 2: successive differences overlap, so they hold fewer degrees of freedom than rows.
        half = t_quantile(level, max(2, x.size // 2)) * sd / math.sqrt(k)
        both = half * math.sqrt(2)
        return (
            Interval(last, last - half, last + half, k, FROM_DIFFERENCES, level),
            Interval(delta, delta - both, delta + both, x.size, FROM_DIFFERENCES, level),
        )
    change = no_interval(delta, x.size, level)
    if batches and x.size > 1:
        half = float(np.ptp(x)) / 2
        return Interval(last, last - half, last + half, k, FROM_RANGE, math.nan), change
    return no_interval(last, x.size, level), change
