"""Which optimizer step does a row belong to, when the row itself does not say?

Console logs have no step column. In this order: the row's own step; the progress bar beside it; its epoch times the
steps of an epoch; its number times the logging interval, where that follows from what the log states. A row whose
step follows from nothing keeps its number, and run.json says so (`source.steps`: "counted"): it is not used as a step.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dpo_diag.importers.bars import Bar, BoolArray, Frames, IntArray
from dpo_diag.importers.length import Length, Range, interval_of_total
from dpo_diag.importers.rows import UNKNOWN_STEP, RowStore
from dpo_diag.records.run_info import StepsSource

FloatArray = npt.NDArray[np.float64]
EPOCH_ROUNDING = 0.0051
"""Half of an epoch's last digit: most trainers print two."""
SHARE_WITH_BAR = 0.8
"""Share of training rows that must have a bar beside them before the others take the last one's step."""
SHARE_RISING = 0.95
"""Share of neighbouring training rows whose bar must rise: below, the bars are not the rows' own (buffered output)."""


class Steps(NamedTuple):
    """Where the steps of a source come from: for run.json, and in words."""

    source: StepsSource | None
    how: str


@dataclass(frozen=True)
class _Rows:
    """The rows of a source in its order. `parts`: for each row, the part of a resumed training that it belongs to."""

    step: IntArray
    epoch: FloatArray
    train: BoolArray
    parts: IntArray

    def rises(self, steps: IntArray, among: BoolArray) -> bool:
        """Whether nearly all of `steps` rise from row to row, inside each part."""
        values, parts = steps[among], self.parts[among]
        same = parts[1:] == parts[:-1]
        return not same.any() or float((np.diff(values) > 0)[same].mean()) > SHARE_RISING


def fill_steps(
    store: RowStore, frames: Frames | None = None, length: Length | None = None, resumed_at: Sequence[int] = ()
) -> Steps:
    """Give every row without a step one, in place; returns where they come from.

    Args:
        frames: progress counters beside the rows, if the source had any.
        resumed_at: numbers of the rows with which a resumed training begins: there steps may run backwards.
    """
    blocks = store.filled()
    if not blocks:
        return Steps(None, "no rows")
    step = np.full(store.rows, UNKNOWN_STEP, dtype=np.int64)
    epoch = np.full(store.rows, np.nan)
    train = np.zeros(store.rows, dtype=bool)
    for block in blocks:
        sequence = np.frombuffer(block.sequence, dtype=np.int32)
        step[sequence] = np.frombuffer(block.steps, dtype=np.int64)
        epoch[sequence] = np.frombuffer(block.epochs, dtype=np.float64)
        train[sequence] = block.train_rows()
        del sequence
    missing = step == UNKNOWN_STEP
    if not missing.any():
        return Steps("stated", "the rows' own step")
    if not missing.all():
        # Late rows beside numbered ones: the last number holds for them (an evaluation after a training row).
        step = _carry_forward(step)
        took = f"the rows' own step; {int(missing.sum())} rows without one took the last one before them"
        found = Steps("stated", took)
    else:
        parts = np.searchsorted(np.array(sorted(resumed_at)), np.arange(store.rows), side="right")
        rows = _Rows(step, epoch, train, parts.astype(np.int64))
        step, found = _infer(rows, frames, length or Length(), store.total)
    for block in blocks:
        filled = array("q")
        filled.frombytes(step[np.frombuffer(block.sequence, dtype=np.int32)].view(np.uint8).data)
        block.steps = filled
    return found


def _infer(rows: _Rows, frames: Frames | None, length: Length, named_total: int | None) -> tuple[IntArray, Steps]:
    bar = Bar.beside(rows.train, frames)
    total = length.exact_total or named_total or (bar.total if bar is not None else None)
    per_epoch = _steps_per_epoch(rows, bar, length, total)
    if bar is not None and _is_of_rows(bar, rows) and (per_epoch is None or _agrees(rows, bar.steps, per_epoch)):
        return _with_evaluations(rows, bar.steps, per_epoch), Steps("bar", "progress frames")
    if per_epoch is not None and np.isfinite(rows.epoch).all():
        found = Steps("epochs", f"epoch x {per_epoch:g} steps per epoch")
        if (steps := _at_one_interval(rows, per_epoch)) is not None:
            return steps, found
        guess = _on_the_grid(np.rint(rows.epoch * per_epoch).astype(np.int64), rows.train)
        if not rows.train.any() or rows.rises(guess, rows.train):
            return guess, found
    return _by_row_numbers(rows, length, total)


def _by_row_numbers(rows: _Rows, length: Length, total: int | None) -> tuple[IntArray, Steps]:
    """Steps from the rows' numbers, where their interval is known; else the numbers themselves."""
    n_train = int(rows.train.sum())
    if n_train == 0:
        return np.arange(len(rows.train), dtype=np.int64), Steps("counted", "row numbers: the log states no steps")
    numbers = _numbers(rows)
    last = int(numbers.max())
    if length.logging_steps:
        steps = _first_row_at_1(rows, numbers) * length.logging_steps
        how = f"row number x {length.logging_steps} (as given)"
        return np.maximum(steps, numbers.clip(max=1)), Steps("interval", how)
    reach = length.total or (Range(total, total) if total else None)
    if reach is not None and length.ended and (found := interval_of_total(reach, last)) is not None:
        interval, has_first = found
        steps = (numbers - has_first).clip(min=0) * interval
        how = f"row number x {interval} ({reach.high:g} steps over {last} rows)"
        return np.maximum(steps, numbers.clip(max=1)), Steps("interval", how)
    return numbers, Steps("counted", "row numbers: the log states no steps (--logging-steps N gives them)")


def _numbers(rows: _Rows) -> IntArray:
    """The number of each training row; an evaluation has that of the last one before it. A resumed part counts on from
    the row whose epoch it begins behind."""
    numbers = np.cumsum(rows.train).astype(np.int64)
    for part in range(1, int(rows.parts.max(initial=0)) + 1):
        here, before = rows.parts == part, rows.parts < part
        starts = rows.epoch[here & rows.train]
        if len(starts) and np.isfinite(starts[0]):
            done = numbers[before & rows.train & (rows.epoch < starts[0] - 1e-9)]
            numbers[here] += int(done.max(initial=0)) - int(numbers[before].max(initial=0))
    return numbers


def _first_row_at_1(rows: _Rows, numbers: IntArray) -> IntArray:
    """Row numbers counted from 0 where the first row is one of step 1 alone: its epoch is far less than an interval."""
    epochs = rows.epoch[rows.train]
    if len(epochs) < 3 or not np.isfinite(epochs).all():
        return numbers
    return numbers - 1 if 0 < epochs[0] < 0.5 * float(np.median(np.diff(epochs))) else numbers


def _at_one_interval(rows: _Rows, per_epoch: float) -> IntArray | None:
    """Steps of rows at one interval, where these give the epoch of every row within its rounding."""
    numbers: IntArray = _numbers(rows)
    last = int(numbers.max(initial=0))
    # Fewer rows than this leave more than one interval within the rounding.
    if not rows.train.any() or last * 0.5 <= EPOCH_ROUNDING * per_epoch:
        return None
    for first in (numbers, numbers - 1):
        interval = round(float(rows.epoch[rows.train].max()) * per_epoch / max(1, int(first.max())))
        steps: IntArray = np.maximum(first * interval, numbers.clip(max=1))
        if interval >= 1 and bool((np.abs(steps / per_epoch - rows.epoch) <= EPOCH_ROUNDING)[rows.train].all()):
            return steps
    return None


def _is_of_rows(bar: Bar, rows: _Rows) -> bool:
    """Whether the bar gives nearly every training row a step of its own."""
    known = bar.steps >= 0
    of_train = known[rows.train]
    return bool(len(of_train) and of_train.mean() >= SHARE_WITH_BAR) and rows.rises(bar.steps, rows.train & known)


def _steps_per_epoch(rows: _Rows, bar: Bar | None, length: Length, total: int | None) -> float | None:
    if total and length.epochs and length.ended:
        return total / length.epochs
    if length.total is not None and length.epochs and length.ended and _is_close(length.total):
        return (length.total.low + length.total.high) / 2 / length.epochs
    stated = total / length.epochs if total and length.epochs else None
    if length.per_epoch:
        # "Num Epochs" is rounded up where max_steps ends the training earlier: then it is far from the batches' number.
        return stated if stated is not None and abs(stated - length.per_epoch) <= 1.0 else length.per_epoch
    usable = np.isfinite(rows.epoch) & (rows.epoch > 0)
    if bar is not None:
        known = usable & bar.exact & (bar.steps > 0)
        known = known if known.any() else usable & rows.train & (bar.steps > 0)
        if known.any():
            # The later half: an epoch of two digits is more exact there than at the start.
            late = np.flatnonzero(known)[int(known.sum()) // 2 :]
            ratio = float(np.median(bar.steps[late] / rows.epoch[late]))
            whole = round(bar.total / ratio)
            return bar.total / whole if whole >= 1 and abs(bar.total / ratio - whole) < 0.04 * whole else ratio
    if stated is not None:
        return stated
    if total and (usable & rows.train).any():
        last = float(rows.epoch[usable & rows.train].max())
        whole = math.ceil(last - 1e-6)
        if last / whole > 0.9:
            return total / whole
    return None


def _is_close(total: Range) -> bool:
    """Whether its middle is near enough: steps from it are moved to the grid of the rows (`_on_the_grid`)."""
    return total.high - total.low <= 0.005 * total.low


def _agrees(rows: _Rows, steps: IntArray, per_epoch: float) -> bool:
    """Whether frames and epochs give the same steps, within the rounding of two-digit epochs."""
    known = rows.train & np.isfinite(rows.epoch) & (steps > 0)
    if not known.any():
        return True
    off = np.abs(rows.epoch[known] * per_epoch - steps[known])
    return bool((off <= max(1.0, 0.011 * per_epoch)).mean() > 0.9)


def _on_the_grid(guess: IntArray, train: BoolArray) -> IntArray:
    """Training rows come every k steps: a guess from rounded epochs is moved to the multiple of k that is beside it."""
    gaps = np.diff(guess[train])
    if len(gaps) < 3 or not (gaps > 0).all():
        return guess
    interval = int(np.median(gaps))
    snapped = np.where(guess >= interval, np.rint(guess / interval).astype(np.int64) * interval, guess)
    near = np.abs(snapped - guess) <= np.maximum(1, 0.006 * guess)
    return snapped if interval > 1 and near[train].all() and (np.diff(snapped[train]) > 0).all() else guess


def _carry_forward(step: IntArray) -> IntArray:
    known = np.where(step >= 0, np.arange(len(step)), -1)
    last = np.maximum.accumulate(known)
    return np.where(last >= 0, step[np.maximum(last, 0)], 0)


def _with_evaluations(rows: _Rows, steps: IntArray, per_epoch: float | None) -> IntArray:
    """Rows without a frame of their own (evaluations beside another bar) take their epoch's step, else the last one."""
    filled = _carry_forward(np.where(steps >= 0, steps, UNKNOWN_STEP))
    if per_epoch is not None:
        lonely = (steps < 0) & np.isfinite(rows.epoch)
        near = np.rint(np.where(np.isfinite(rows.epoch), rows.epoch, 0.0) * per_epoch).astype(np.int64)
        # Two-digit epochs cannot name a step exactly: the last training step wins where it is as near.
        far = np.abs(near - filled) > max(1.0, 0.011 * per_epoch)
        filled = np.where(lonely & far, near, filled)
    return filled
