"""Progress bars in console text: which of them count optimizer steps, and how far they are."""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Counter = tuple[int, int]
"""(steps done, steps in all)."""
UNKNOWN: Counter = (-1, -1)
LINE = 500
"""Bytes before a counter in which its bar begins: a label and a bar of a wide terminal."""
_COUNTER = re.compile(rb"(\d{1,10})/(\d{1,10}) \[([^\]\r\n{]{0,160})")  # tqdm: 10/1000 [00:30<50:00, 3.00s/it]
_PERCENT = re.compile(rb"\d{1,3}%\Z")
_BEFORE_LABEL = re.compile(rb"[\r\n|\]]")
LABEL = 120
_OTHER_LABEL = re.compile(
    rb"\b(?:map|filter|tokeni[sz]|extract|appl|load|download|fetch|generat|sav|eval|predict|valid|test|comput|precomput|"
    rb"data|dataset|shard|cast|merg|pack|truncat|writ|upload|creat|convert|format|process|adding)",
    re.IGNORECASE,
)
_OTHER_UNIT = re.compile(rb"examples/s|\dB/s|[kKMG]B/s|files/s|shards?/s|tokens/s|rows/s")
_EPOCH = re.compile(rb"epochs?\W{0,3}(\d{1,4})", re.IGNORECASE)
_LARGEST = (1 << 31) - 1  # what an array of C ints holds


def counters(data: bytes, start: int, end: int) -> Iterator[Counter]:
    """The counters of training bars in data[start:end], in their order; (steps done, steps in all).

    Bars of tokenising, mapping, loading and evaluating are left out by their label or unit. A bar that is drawn anew
    for each epoch and says which one it is counts on over the epochs.
    """
    for match in _COUNTER.finditer(data, start, end):
        if (counter := _counter(data, match)) is not None:
            yield counter


def next_counter(data: bytes, start: int, end: int) -> Counter:
    """The first counter of a training bar in data[start:end]."""
    return next(counters(data, start, end), UNKNOWN)


def last_counter(data: bytes, start: int, end: int) -> Counter:
    """The last counter of a training bar in data[start:end]."""
    return next(iter(deque(counters(data, start, end), maxlen=1)), UNKNOWN)


def _counter(data: bytes, match: re.Match[bytes]) -> Counter | None:
    done, total = int(match.group(1)), int(match.group(2))
    if total < 1 or done > total or total > _LARGEST or _OTHER_UNIT.search(match.group(3)):
        return None
    label = _label(data[max(0, match.start() - LINE) : match.start()])
    if not label.strip():
        return done, total
    if _OTHER_LABEL.search(label):
        return None
    epoch = _EPOCH.search(label)
    # "Epoch 2/3: 40%|": the bar of one epoch. Whether the first is 0 or 1 shows when all rows are known.
    done += int(epoch.group(1)) * total if epoch is not None else 0
    return (done, total) if done <= _LARGEST else None


def _label(text: bytes) -> bytes:
    """What stands in front of a bar, `Train: ` in "Train:  40%|####      | " and nothing behind it; b"" without one."""
    text = text.rstrip()
    before, _, bar = text[:-1].rpartition(b"|")
    is_bar = text.endswith(b"|") and b"\n" not in bar and b"\r" not in bar
    percent = _PERCENT.search(before, max(0, len(before) - 4)) if is_bar else None
    if percent is None:
        return b""
    return _BEFORE_LABEL.split(before[: percent.start()])[-1][-LABEL:].rstrip(b" \t").removesuffix(b":")


@dataclass
class Frames:
    """For each row, by its number in the source, the progress counters beside it, as (steps done, steps in all)."""

    counters: array[int] = field(default_factory=lambda: array("i"))  # done and total before the row, and after it
    unseen: int = 0  # rows before the first one that has a frame at all: most logs without a bar have none

    def add(self, before: Counter, after: Counter) -> None:
        """The frames before and after the next row; UNKNOWN where there is none."""
        if not self.counters:
            if before[1] < 0 and after[1] < 0:
                self.unseen += 1
                return
            self.counters.extend([-1] * (4 * self.unseen))
        self.counters.extend((*before, *after))

    def extend(self, other: Frames, rows: int, others_rows: int) -> None:
        """The frames of rows that follow; `rows` are here so far, `others_rows` there."""
        both = (self.columns(), other.columns())
        if both[0].shape[1] or both[1].shape[1]:
            padded = [c if c.shape[1] else np.full((4, n), -1) for c, n in zip(both, (rows, others_rows), strict=True)]
            self.counters = array("i", np.concatenate(padded, axis=1).T.ravel().tolist())
        self.unseen += other.unseen

    def columns(self) -> IntArray:
        """done before, total before, done after, total after: (4, rows), -1 unknown; (4, 0) without any frame."""
        return np.array(self.counters, np.int64).reshape(-1, 4).T


@dataclass(frozen=True)
class Bar:
    """The training's own bar: the one whose total stands beside most training rows; steps are -1 where it does not.

    Attributes:
        exact: rows whose step the bar gives exactly: it is drawn again right after a row, the one before may lag.
    """

    total: int
    steps: IntArray
    exact: BoolArray

    @classmethod
    def beside(cls, train: BoolArray, frames: Frames | None) -> Bar | None:
        columns = frames.columns() if frames is not None else np.zeros((4, 0), np.int64)
        if columns.shape[1] != len(train):
            return None
        before, before_total, after, after_total = columns
        chosen = train if train.any() else np.ones_like(train)
        seen = np.concatenate([before_total[chosen], after_total[chosen]])
        if not (seen > 0).any():
            seen = np.concatenate([before_total, after_total])
        seen = seen[seen > 0]
        if len(seen) == 0:
            return None
        totals, counts = np.unique(seen, return_counts=True)
        total = int(totals[np.argmax(counts)])
        if _frames_lead(before, before_total, after, total):
            steps, exact = before, before_total == total
        else:
            # Behind a restart the bar begins anew: that frame is no longer the row's.
            exact = (after_total == total) & ((after >= before) | (before_total != total))
            steps = np.where(exact, after, np.where(before_total == total, before, -1))
        if (steps > total).any() and steps[steps >= 0].min() > total:
            steps = np.where(steps >= 0, steps - total, steps)  # bars of epochs that are numbered from 1
        return cls(total, steps, exact)


def _frames_lead(before: IntArray, before_total: IntArray, after: IntArray, total: int) -> bool:
    """Whether every row has its own frame before it and none after (filtered logs, bars printed with the row): then the
    frame after a row is the next row's. A bar that lags by one begins at 0 and is drawn again after the last row.
    """
    if len(before) < 3 or not (before_total == total).all() or before[0] <= 0 or after[-1] >= 0:
        return False
    next_own = after[:-1] == before[1:]
    return bool((next_own | (after[:-1] < 0)).all() and next_own.mean() > 0.5 and (np.diff(before) >= 0).all())
