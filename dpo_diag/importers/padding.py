"""NaN that stands for "not logged": a table has every column in every row, a training logs some of them at a time.

`pd.DataFrame(log_history)` and W&B's history hold NaN in an evaluation's row for what the training logs, and the other
way round. What stays is NaN of the training: beside numbers of the same split, or where numbers stood row after row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
LEAST_TAIL = 3
"""Rows at the end in which nothing at all is a number: from so many on a training ended in NaN, fewer are a remark."""
LEAST_SHARE = 0.45
"""NaN of a column that is logged in every second row or more rarely."""
STEADY = 0.9
"""Share of rows from which a split counts as logged in every row."""


def not_logged(nan: BoolArray, splits: Sequence[str]) -> BoolArray:
    """Which NaN of rows with the same keys are none of the training.

    Args:
        nan: where a value is NaN, (rows, metrics).
        splits: the split of each metric.
    """
    absent = np.zeros_like(nan)
    columns = {split: np.flatnonzero([s == split for s in splits]) for split in dict.fromkeys(splits)}
    present = {split: np.asarray(~nan[:, of_split].all(axis=1)) for split, of_split in columns.items()}
    for split, of_split in columns.items():
        if len(columns) > 1:
            empty = _not_of_split(split, present)
            absent[np.ix_(np.flatnonzero(empty), of_split)] = True
        rows = np.flatnonzero(present[split])
        for column in of_split:
            absent[rows, column] |= _between(nan[rows, column])
    return absent


def _not_of_split(split: str, present: dict[str, BoolArray]) -> BoolArray:
    """Rows without a number of a split that are none of its rows.

    They are its rows, and NaN, where the split is logged in every row, together with what stands there.
    """
    own = present[split]
    others = np.any([rows for name, rows in present.items() if name != split], axis=0)
    nothing = ~own & ~others
    if not own.any():
        # NaN wherever it was logged: beside the others if they stand in every row, else in rows of its own.
        return ~own & others if others.mean() < STEADY else np.zeros_like(own)
    last = int(np.flatnonzero(own)[-1])
    together = others[: last + 1]
    steady = own[: last + 1].mean() >= STEADY and together.any() and own[: last + 1][together].mean() >= STEADY
    out = ~own & ~nothing if not steady else np.zeros_like(own)
    # Rows that hold nothing at all: remarks, or the training's NaN from there on.
    filled = np.flatnonzero(~nothing)
    tail = np.arange(len(own)) > filled[-1]
    is_nan = tail.sum() >= LEAST_TAIL and (split == "train" or "train" not in present)
    return np.asarray(out | (nothing & ~tail if is_nan else nothing))


def _between(nan: BoolArray) -> BoolArray:
    """NaN of a column that is logged less often than its row's others: in runs of one length, with numbers between."""
    known = np.flatnonzero(~nan)
    out = np.zeros(len(nan), dtype=bool)
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
