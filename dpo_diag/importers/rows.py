"""Log rows in memory: compact columns instead of dictionaries, so that millions of rows of a long log fit.

Rows with the same keys share a block. A block keeps its values as float64, row after row, and spills to a temporary
file when it grows; a metric is read back as one column at a time.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.importers.keys import EPOCH_KEYS, STEP_KEYS, TOTAL_KEYS, Place, clean_key, is_bookkeeping, place
from dpo_diag.importers.numbers import is_missing, number, step_number, steps_total
from dpo_diag.importers.padding import BoolArray, not_logged
from dpo_diag.records.text_files import Skipped

FloatArray = npt.NDArray[np.float64]
UNKNOWN_STEP = -1
SPILL_VALUES = 1 << 18
_SUMMARY_KEYS = frozenset(("train_runtime", "train/train_runtime", "train/runtime", "total_flos", "train/total_flos"))
_TEXT_KEYS = frozenset(("type", "event", "message", "msg", "level", "run", "run_name", "name", "date", "datetime"))


class Block:
    """Rows that have the same keys."""

    def __init__(self, keys: tuple[Any, ...], trainer: str) -> None:
        by_clean = {clean_key(str(k)).lower(): k for k in keys}
        self.step_key = next((by_clean[k] for k in STEP_KEYS if k in by_clean), None)
        self.epoch_key = next((by_clean[k] for k in EPOCH_KEYS if k in by_clean), None)
        self.total_keys = [by_clean[k] for k in TOTAL_KEYS if k in by_clean]
        administrative = set(STEP_KEYS) | set(EPOCH_KEYS) | set(TOTAL_KEYS)
        self.summary_keys = [k for k in keys if clean_key(str(k)) in _SUMMARY_KEYS]
        self.metrics: list[Any] = []
        self.places: list[Place] = []
        known: dict[Place, int] = {}
        self.dropped: list[str] = []
        self.twins: dict[Any, list[Any]] = {}  # a metric's key -> keys that were dropped because they mean the same
        for key in keys:
            name = str(key)
            lower = clean_key(name).lower()
            if lower in administrative or lower in _TEXT_KEYS or not lower:
                continue
            where = None if is_bookkeeping(name) else place(name, trainer)
            if where is None:
                self.dropped.append(name)
                continue
            if (at := known.setdefault(where, len(known))) < len(self.places):
                # `loss` beside `train_loss`: one of them is enough, best the one of our name
                if _is_ours(key, where) and not _is_ours(self.metrics[at], where):
                    self.metrics[at], key = key, self.metrics[at]
                self.dropped.append(str(key))
                self.twins[self.metrics[at]] = [*self.twins.pop(key, []), key]
                continue
            self.metrics.append(key)
            self.places.append(where)
        self.is_clean = False  # some row held nothing but numbers
        self.is_train = any(p.split == "train" for p in self.places)
        # Keys that no table knows (a GPU's load) have rows of their own, whatever split they are kept under.
        self.splits = [p.split if p.known else f"{p.split}?" for p in self.places]
        self.has_nan = False
        self._not_logged: BoolArray = np.empty((0, 0), dtype=bool)
        self.values = array("d")
        self.steps = array("q")
        self.epochs = array("d")
        self.sequence = array("i")  # number of the row in the source, over all blocks
        self.spill: IO[bytes] | None = None
        self.spilled: list[tuple[int, int]] = []  # (offset in the file, rows), each chunk stored column by column

    def maybe_spill(self) -> None:
        if len(self.values) < SPILL_VALUES:
            return
        if self.spill is None:
            self.spill = tempfile.TemporaryFile(prefix="dpo-diag-")  # noqa: SIM115 - lives as long as the block
            weakref.finalize(self, self.spill.close)
        width = len(self.metrics)
        rows = len(self.values) // width
        self.spill.seek(0, 2)
        self.spilled.append((self.spill.tell(), rows))
        table = np.frombuffer(self.values, dtype=np.float64).reshape(rows, width)
        self.spill.write(np.ascontiguousarray(table.T).tobytes())
        del table
        self.values = array("d")

    def column(self, index: int) -> FloatArray:
        width = len(self.metrics)
        parts: list[FloatArray] = []
        if self.spill is not None:
            for offset, rows in self.spilled:
                self.spill.seek(offset + index * rows * 8)
                parts.append(np.frombuffer(self.spill.read(rows * 8), dtype=np.float64))
        if len(self.values):
            parts.append(np.frombuffer(self.values, dtype=np.float64).reshape(-1, width)[:, index].copy())
        return np.concatenate(parts) if parts else np.empty(0)

    def nan_twins(self, row: Mapping[str, Any], values: list[float]) -> set[Any]:
        """Keys of NaN beside a number that means the same: `train_loss` of a final summary in front of `loss`."""
        pairs = zip(self.metrics, values, strict=True)
        return {key for key, value in pairs if math.isnan(value) and any(map(_is_finite, self._twins(row, key)))}

    def _twins(self, row: Mapping[str, Any], key: Any) -> list[Any]:
        return [row[twin] for twin in self.twins.get(key, ())]

    def series(self, index: int) -> tuple[npt.NDArray[Any], ...]:
        """One metric where it was logged: the rows' numbers in the source, step, epoch, value."""
        # Views of the block's own arrays, which nobody changes any more: a copy per metric would fill the memory.
        columns = (
            np.frombuffer(self.sequence, dtype=np.int32),
            np.frombuffer(self.steps, dtype=np.int64),
            np.frombuffer(self.epochs, dtype=np.float64),
            self.column(index),
        )
        return columns if not self.has_nan else tuple(c[~self._absent()[:, index]] for c in columns)

    def train_rows(self) -> BoolArray:
        """Which of its rows are the training's."""
        of_train = [i for i, split in enumerate(self.splits) if split == "train"]
        if not self.has_nan or not of_train:
            return np.full(len(self.steps), self.is_train)
        return np.asarray(~self._absent()[:, of_train].all(axis=1))

    def _absent(self) -> BoolArray:
        """Which values, (rows, metrics), are NaN only because the source fills its table with it."""
        if len(self._not_logged) != len(self.steps):
            columns = [np.isnan(self.column(i)) for i in range(len(self.metrics))]
            self._not_logged = not_logged(np.stack(columns, axis=1), self.splits)
        return self._not_logged


class RowStore:
    """Rows of one source. `add` takes a dictionary as the source wrote it; `series` gives one metric back.

    Attributes:
        rows: rows that held at least one metric and are no summary.
        empty: rows without a number of any metric.
        summaries: final summary rows (`train_runtime`, ...): no step of the training.
        total: the largest total number of steps that a row names.
        may_fill: NaN may stand for "not logged"; false for a source that holds what was logged and nothing else.
    """

    may_fill = True

    def __init__(self, skipped: Skipped, trainer: str = "any", report_wrong_types: bool = True) -> None:
        self.skipped = skipped
        self.trainer = trainer
        self.blocks: dict[tuple[Any, ...], Block] = {}
        self._where: dict[tuple[str, str], list[tuple[Block, int]]] = {}  # (split, name) -> blocks that hold it
        self.rows = self.empty = 0
        self.summaries: list[dict[str, Any]] = []
        self.total: int | None = None
        self._report_types = report_wrong_types

    def add(self, row: Mapping[str, Any], line: int = 0, step: int | None = None) -> Block | None:
        """Take a row. `step` is used when the row names none. Returns its block, None if it held no metric."""
        keys = tuple(row)
        block = self.blocks.get(keys)
        if block is None and len(self.blocks) > 64:
            # A source that shuffles its keys must not make a block per order.
            keys = tuple(sorted(row, key=str))
            block = self.blocks.get(keys)
        if block is None:
            block = self._new_block(keys)
        if block.summary_keys:
            if any(_is_finite(row[key]) for key in block.summary_keys):
                stated = {str(k): v for k, v in row.items() if isinstance(v, (int, float, str)) and v == v}
                self.summaries.append(stated)
                return None
            return self.add({k: v for k, v in row.items() if k not in block.summary_keys}, line, step)
        values = self._values(block, row)
        if values is None:
            return self._add_without(row, line, step)
        if not values:
            self.empty += 1
            return None
        if any(map(math.isnan, values)):
            if padded := block.nan_twins(row, values):
                return self.add({k: v for k, v in row.items() if k not in padded}, line, step)
            block.has_nan = self.may_fill
        if block.step_key is not None:
            named = step_number(row[block.step_key])
            if named is None:
                if not _is_empty(row[block.step_key]) and self._report_types:
                    self.skipped.add(line or None, f"{block.step_key} is not a step: {_short(row[block.step_key])}")
                    return None
            else:
                step = named
        totals = [steps_total(row[block.step_key])] if block.step_key is not None else []
        totals += [step_number(row[key]) for key in block.total_keys]
        self.total = max((total for total in (self.total, *totals) if total), default=None)
        epoch = number(row[block.epoch_key]) if block.epoch_key is not None else None
        block.values.extend(values)
        block.steps.append(UNKNOWN_STEP if step is None else step)
        block.epochs.append(math.nan if epoch is None else epoch)
        block.sequence.append(self.rows)
        block.maybe_spill()
        self.rows += 1
        return block

    def add_points(self, points: Iterable[tuple[int, str, Any]]) -> None:
        """Take (step, key, value) of a source that holds its metrics apart, as rows in the order in which they begin.

        A key that a step holds already starts a second row of that step: where steps run backwards stays visible.
        """
        rows: list[tuple[int, dict[str, Any]]] = []
        latest: dict[int, dict[str, Any]] = {}
        for step, key, value in points:
            if key in latest.get(step, (key,)):
                latest[step] = {}
                rows.append((step, latest[step]))
            latest[step][key] = value
        empty = self.empty
        for step, row in rows:
            self.add(row, 0, step)
        self.empty = empty  # points are no rows of the source: a step may hold its epoch alone

    def extend(self, later: RowStore) -> None:
        """Take the rows of another store behind these."""
        for keys, theirs in later.blocks.items():
            block = self.blocks.get(keys) or self._new_block(keys)
            if not len(theirs.steps):
                continue
            table = np.stack([theirs.column(i) for i in range(len(theirs.metrics))], axis=1)
            block.values.frombytes(np.ascontiguousarray(table).tobytes())
            block.steps.extend(theirs.steps)
            block.epochs.extend(theirs.epochs)
            block.sequence.extend(array("i", (self.rows + i for i in theirs.sequence)))
            block.is_clean = block.is_clean or theirs.is_clean
            block.has_nan = block.has_nan or theirs.has_nan
            block.maybe_spill()
        self.rows, self.empty = self.rows + later.rows, self.empty + later.empty
        self.summaries += later.summaries
        self.total = max((t for t in (self.total, later.total) if t), default=None)

    def _new_block(self, keys: tuple[Any, ...]) -> Block:
        block = self.blocks[keys] = Block(keys, self.trainer)
        for index, where in enumerate(block.places):
            self._where.setdefault((where.split, where.name), []).append((block, index))
        return block

    def _values(self, block: Block, row: Mapping[str, Any]) -> list[float] | None:
        """The row's metrics as floats, None if one is no number; after one clean row of a block the others go fast."""
        if block.is_clean:
            try:
                return list(map(float, map(row.__getitem__, block.metrics)))
            except (TypeError, ValueError, OverflowError):
                pass
        values = [v for key in block.metrics if (v := number(row[key])) is not None]
        if len(values) < len(block.metrics):
            return None
        block.is_clean = True
        return values

    def _add_without(self, row: Mapping[str, Any], line: int, step: int | None) -> Block | None:
        """The row without the values that are no numbers; known metrics of a wrong type are reported."""
        kept: dict[str, Any] = {}
        for key, value in flat(row):
            where = place(str(key), self.trainer)
            is_metric = where is not None and clean_key(str(key)).lower() not in (*STEP_KEYS, *EPOCH_KEYS, *TOTAL_KEYS)
            if is_metric and number(value) is None:
                if where is not None and where.known and not is_missing(value) and self._report_types:
                    self.skipped.add(line or None, f"{key} is not a number: {_short(value)}")
                continue
            kept[key] = value
        return self.add(kept, line, step)

    def metrics(self) -> list[tuple[str, str]]:
        """Every (split, name) that some row holds."""
        return sorted(key for key in self._where if self.holds(*key))

    def holds(self, split: str, name: str) -> bool:
        """Whether some row holds the metric."""
        return any(len(block.steps) for block, _ in self._where.get((split, name), ()))

    def mapping(self) -> dict[str, tuple[str, str]]:
        """Source key -> [split, our name] of the rows that were taken."""
        out: dict[str, tuple[str, str]] = {}
        for block in self.filled():
            for key, where in zip(block.metrics, block.places, strict=True):
                out[str(key)] = (where.split, where.name)
        return dict(sorted(out.items()))

    def unknown_keys(self) -> list[str]:
        """Keys without a row in the alias table: kept under their own name."""
        return sorted({str(k) for b in self.filled() for k, p in zip(b.metrics, b.places, strict=True) if not p.known})

    def dropped_keys(self) -> list[str]:
        """Bookkeeping that was left out: timing, memory, counters."""
        return sorted({k for b in self.filled() for k in b.dropped})

    def series(self, split: str, name: str) -> pd.DataFrame:
        """One metric as rows of step, epoch, value, in the order of the source."""
        parts = [block.series(index) for block, index in self._where[split, name] if len(block.steps)]
        # Joined as arrays: a source may begin a new block with every row.
        numbers, *columns = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        if len(parts) > 1:
            order = np.argsort(numbers, kind="stable")
            columns = [column[order] for column in columns]
        return pd.DataFrame(dict(zip(("step", "epoch", "value"), columns, strict=True)), copy=False)

    def filled(self) -> list[Block]:
        """The blocks that hold rows."""
        return [b for b in self.blocks.values() if len(b.steps)]


def flat(row: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(key, value) with nested objects joined by slashes: {"train": {"loss": 1}} is train/loss, as W&B flattens."""
    for key, value in row.items():
        if isinstance(value, Mapping) and depth < 6:
            yield from flat(value, f"{prefix}{key}/", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _is_ours(key: Any, where: Place) -> bool:
    return clean_key(str(key)).lower().removeprefix("train/") == where.name


def _is_finite(value: Any) -> bool:
    known = number(value)
    return known is not None and math.isfinite(known)


def _is_empty(value: Any) -> bool:
    """Whether a cell names no step: missing, or NaN."""
    known = number(value)
    return is_missing(value) or (known is not None and math.isnan(known))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
