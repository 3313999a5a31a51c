"""NaN that stands for "not logged": a table has every column in every row, a training logs some of them at a time.

`pd.DataFrame(log_history)` and W&B's history hold NaN in an evaluation's row for what the training logs, and the other
way round. What stays is NaN of the training: beside numbers of the same split in the same row, or from a row on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
LEAST_TAIL = 3
"""Rows at the end in which nothing at all is a number: from so many on a training ended in NaN, fewer are a remark."""
LEAST_SHARE = 0.45
"""NaN of a column that is logged in every second row or more rarely."""


def empty_splits(values: Sequence[float], splits: Sequence[str]) -> set[str]:
    """Splits of which a row holds nothing but NaN, while it holds numbers of another one."""
    measured = {split for split, value in zip(splits, values, strict=True) if not math.isnan(value)}
    return set(splits) - measured if measured else set()


def not_logged(nan: BoolArray, splits: Sequence[str]) -> BoolArray:
    """Which NaN of rows with the same keys are none of the training.

    Args:
        nan: where a value is NaN, (rows, metrics).
        splits: the split of each metric.
    """
    absent = np.zeros_like(nan)
    of_split = {split: np.array([s == split for s in splits]) for split in dict.fromkeys(splits)}
    if len(of_split) > 1:
        nothing = nan.all(axis=1)
        tail = len(nothing) - int(np.argmax(~nothing[::-1])) if not nothing.all() else 0
        if len(nothing) - tail >= LEAST_TAIL:
            # Which of the splits was logged there cannot be told: the training's, if it has one.
            first = next((split for split in of_split if split == "train"), next(iter(of_split)))
            nothing[tail:] = False
            absent[tail:, ~of_split[first]] = True
        absent[nothing] = True
    for columns in of_split.values():
        logged = ~nan[:, columns].all(axis=1)
        for column in np.flatnonzero(columns):
            rows = np.flatnonzero(logged)
            absent[rows, column] |= _between(nan[rows, column])
    return absent


def _between(nan: BoolArray) -> BoolArray:
    """NaN of a column that is logged less often than its row's others: in runs of one length, with numbers between."""
    known = np.flatnonzero(~nan)
    out = np.zeros_like(nan)
    if not len(known) or len(known) == len(nan):
        return out
    gaps = np.diff(known) - 1
    gaps = gaps[gaps > 0]
    inside = nan[: known[-1] + 1]
    if inside.mean() < LEAST_SHARE:
        return out
    if len(gaps) == 0:  # nothing but NaN before the first number: a column that begins late, or is logged once
        out[: known[0]] = known[0] > 1
        return out
    middle = float(np.median(gaps))
    if len(gaps) + (known[0] > 0) < 2 or np.abs(gaps - middle).max() > max(1.0, 0.2 * middle):
        return out
    out[: len(inside)] = inside
    if len(nan) - len(inside) <= 2 * middle:
        out[len(inside) :] = True
    return out
