"""Which optimizer step does a row belong to, when the row itself does not say?

Console logs have no step column. In this order: the row's own step; the progress frame beside it; its epoch times the
steps of an epoch; its number times the logging interval. run.json's `source.steps_from` names what was used.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dpo_diag.importers.rows import UNKNOWN_STEP, RowStore
from dpo_diag.records.run_info import StepsSource

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Steps(NamedTuple):
    """Where the steps of a source come from: for run.json, and in words."""

    source: StepsSource | None
    how: str


@dataclass
class Frames:
    """For each row, by its number in the source, the progress counters beside it, as (steps done, steps in all)."""

    counters: array[int] = field(default_factory=lambda: array("i"))  # done and total before the row, and after it
    unseen: int = 0  # rows before the first one that has a frame at all: most logs without a bar have none

    def add(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """The frames before and after the next row; (-1, -1) where there is none."""
        if not self.counters:
            if before[1] < 0 and after[1] < 0:
                self.unseen += 1
                return
            self.counters.extend([UNKNOWN_STEP] * (4 * self.unseen))
        self.counters.extend((*before, *after))

    def columns(self) -> IntArray:
        """done before, total before, done after, total after: (4, rows), -1 unknown; (4, 0) without any frame."""
        return np.array(self.counters, np.int64).reshape(-1, 4).T


def fill_steps(
    store: RowStore,
    frames: Frames | None = None,
    *,
    logging_steps: int | None = None,
    total_steps: int | None = None,
    total_epochs: float | None = None,
) -> Steps:
    """Give every row without a step one, in place; returns where they come from.

    Args:
        frames: progress counters beside the rows, if the source had any.
        logging_steps: optimizer steps between two rows, where it is known.
        total_steps, total_epochs: length of the whole training, where it is known.
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
        step, found = _infer(epoch, train, frames, logging_steps, total_steps or store.total, total_epochs)
    for block in blocks:
        filled = array("q")
        filled.frombytes(step[np.frombuffer(block.sequence, dtype=np.int32)].view(np.uint8).data)
        block.steps = filled
    return found


def _infer(
    epoch: FloatArray,
    train: npt.NDArray[np.bool_],
    frames: Frames | None,
    logging_steps: int | None,
    total_steps: int | None,
    total_epochs: float | None,
) -> tuple[IntArray, Steps]:
    by_frame, bar_total = _from_frames(train, frames)
    per_epoch = _steps_per_epoch(epoch, train, by_frame, bar_total or total_steps, total_epochs, total_steps)
    if by_frame is not None and _strictly_rising(by_frame[train & (by_frame >= 0)]) > 0.95:
        known = by_frame >= 0
        if per_epoch is None or _agrees(by_frame[known & train], epoch[known & train], per_epoch):
            return _from_last_train(by_frame, train, epoch, per_epoch), Steps("bar", "progress frames")
    if per_epoch is not None and np.isfinite(epoch).all():
        guess = _on_the_grid(np.rint(epoch * per_epoch).astype(np.int64), train)
        if _strictly_rising(guess[train]) > 0.95 or not train.any():
            return guess, Steps("epochs", f"epoch x {per_epoch:g} steps per epoch")
    n_train = int(train.sum())
    if n_train == 0:
        return np.arange(len(train), dtype=np.int64), Steps("counted", "row numbers: the log states no steps")
    numbers = np.cumsum(train).astype(np.int64)
    if logging_steps:
        return numbers * logging_steps, Steps("interval", f"row number x {logging_steps} (as given)")
    if total_steps and n_train <= total_steps:
        interval = max(1, total_steps // n_train)
        how = f"row number x {interval} ({total_steps} steps over {n_train} rows)"
        return numbers * interval, Steps("interval", how)
    return numbers, Steps("counted", "row numbers: the log states no steps (--logging-steps N gives them)")


def _from_frames(train: npt.NDArray[np.bool_], frames: Frames | None) -> tuple[IntArray | None, int | None]:
    """Steps by the training bar: the one whose total stands beside most training rows; -1 where it is not beside."""
    if frames is None:
        return None, None
    before, before_total, after, after_total = frames.columns()
    if len(before) != len(train):
        return None, None
    rows = train if train.any() else np.ones_like(train)
    seen = np.concatenate([before_total[rows], after_total[rows]])
    seen = seen[seen > 0]
    if len(seen) == 0:
        return None, None
    totals, counts = np.unique(seen, return_counts=True)
    total = int(totals[np.argmax(counts)])
    if _frames_lead(before, before_total, after, total):
        return before, total
    # tqdm draws the bar again right after a row: that frame is exact, the one before may lag (drawing is throttled).
    steps = np.where(after_total == total, after, np.where(before_total == total, before, UNKNOWN_STEP))
    share = (steps[train] >= 0).mean() if train.any() else 0.0
    return (steps, total) if share >= 0.8 else (None, total)


def _frames_lead(before: IntArray, before_total: IntArray, after: IntArray, total: int) -> bool:
    """Whether every row has its own frame before it and none after (filtered logs, bars printed with the row): then the
    frame after a row is the next row's. A finished bar before the last row and nothing after it tells it from a bar
    that lags by one."""
    if len(before) < 3 or not (before_total == total).all() or before[-1] != total or after[-1] >= 0:
        return False
    next_own = after[:-1] == before[1:]
    return bool((next_own | (after[:-1] < 0)).all() and next_own.mean() > 0.5 and (np.diff(before) >= 0).all())


def _steps_per_epoch(
    epoch: FloatArray,
    train: npt.NDArray[np.bool_],
    by_frame: IntArray | None,
    bar_total: int | None,
    total_epochs: float | None,
    total_steps: int | None,
) -> float | None:
    if total_steps and total_epochs:
        return total_steps / total_epochs
    usable = train & np.isfinite(epoch) & (epoch > 0)
    if by_frame is not None:
        usable = usable & (by_frame > 0)
        if usable.sum() >= 3:
            # The later half: an epoch of four digits is more exact there than at the start.
            late = np.flatnonzero(usable)[usable.sum() // 2 :]
            return float(np.median(by_frame[late] / epoch[late]))
    if bar_total and usable.any():
        last = float(epoch[usable].max())
        whole = np.ceil(last - 1e-6)
        if whole > 0 and last / whole > 0.9:
            return bar_total / float(whole)
    return None


def _agrees(step: IntArray, epoch: FloatArray, per_epoch: float) -> bool:
    """Whether frames and epochs give the same steps, within the rounding of two-digit epochs."""
    known = np.isfinite(epoch) & (step > 0)
    if not known.any():
        return True
    off = np.abs(epoch[known] * per_epoch - step[known])
    slack = np.maximum(1.0, 0.011 * per_epoch)
    return bool((off <= slack).mean() > 0.9)


def _on_the_grid(guess: IntArray, train: npt.NDArray[np.bool_]) -> IntArray:
    """Training rows come every k steps: a guess from rounded epochs is moved to the multiple of k that is beside it."""
    gaps = np.diff(guess[train])
    if len(gaps) < 3 or not (gaps > 0).all():
        return guess
    interval = int(np.median(gaps))
    snapped = np.where(guess >= interval, np.rint(guess / interval).astype(np.int64) * interval, guess)
    near = np.abs(snapped - guess) <= np.maximum(1, 0.006 * guess)
    return snapped if interval > 1 and near[train].all() and _strictly_rising(snapped[train]) == 1.0 else guess


def _strictly_rising(steps: IntArray) -> float:
    """Share of neighbours that rise; restarts after a crash keep it high, frames that lag behind do not."""
    return 1.0 if len(steps) < 2 else float((np.diff(steps) > 0).mean())


def _carry_forward(step: IntArray) -> IntArray:
    known = np.where(step >= 0, np.arange(len(step)), -1)
    last = np.maximum.accumulate(known)
    return np.where(last >= 0, step[np.maximum(last, 0)], 0)


def _from_last_train(
    steps: IntArray, train: npt.NDArray[np.bool_], epoch: FloatArray, per_epoch: float | None
) -> IntArray:
    """Rows without a frame of their own (evaluations beside another bar) take their epoch's step, else the last one."""
    filled = _carry_forward(np.where(steps >= 0, steps, UNKNOWN_STEP))
    if per_epoch is not None:
        lonely = (steps < 0) & np.isfinite(epoch)
        near = np.rint(np.where(np.isfinite(epoch), epoch, 0.0) * per_epoch).astype(np.int64)
        # Two-digit epochs cannot name a step exactly: the last training step wins where it is as near.
        far = np.abs(near - filled) > np.maximum(1.0, 0.011 * per_epoch)
        filled = np.where(lonely & far, near, filled)
    return filled
