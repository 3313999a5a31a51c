"""The pair rows of one split as arrays: read once, sorted once, so that every step of them is a slice.

Rows stand in the order of steps, pairs and sides, each once (of rows that were written twice the last). The reference's
values stand once per pair and side. Time and memory follow the rows, however many evaluations they came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from dpo_diag.records import Run
from dpo_diag.records.schemas import SIDES
from dpo_diag.records.tables import REFERENCE_COLUMNS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IntT = TypeVar("IntT", np.int32, np.int64)
Rows = slice | IntArray
"""Places of rows of a `SplitRows`, ascending in pair and side."""

VALUES = (
    "sum_logp", "n_tokens", "n_bytes", "n_truncated", "top1", "entropy_sum", "greedy_logp_sum", "weight", "loss_logp",
    "beta",
)  # fmt: skip
CATEGORIES = ["split", "pair_id", "side"]
_KEY = ("step", "role", *CATEGORIES)


class SplitRows:
    """The policy's rows of a split, and what the reference's say of its pairs.

    Attributes:
        name: the split.
        ids: its pairs (P,), ascending; also those that only the reference scored.
        steps: steps with policy rows (S,), ascending.
        bounds: rows of the i-th step are bounds[i]:bounds[i + 1], (S + 1,).
        pair, side: which pair (index in `ids`) and side (index in SIDES) each row is, (N,).
        values: column -> (N,) float64, NaN where unknown; columns that no row fills are left out.
        reference: column -> (P, 2) float64, NaN where the reference was not measured; likewise.
        twice: step (None: the reference) -> rows that were written more than once.
    """

    def __init__(
        self,
        name: str,
        ids: pd.Index[str],
        step: IntArray,
        pair: npt.NDArray[np.int32],
        side: npt.NDArray[np.int8],
        values: dict[str, FloatArray],
        reference: dict[str, FloatArray],
        twice: Counter[int | None],
    ) -> None:
        self.name, self.ids, self.pair, self.side, self.values = name, ids, pair, side, values
        self.reference, self.twice = reference, twice
        self.steps, first = np.unique(step, return_index=True)
        self.bounds = np.append(first, step.size)
        self._last_index: tuple[npt.NDArray[np.int32], pd.Index[str]] | None = None

    # --- which rows -------------------------------------------------------------------------------------------------

    def at(self, step: int) -> slice:
        """Rows of a step; an empty slice where it was not measured."""
        return self.between(step, step)

    def between(self, first: int, last: int) -> slice:
        """Rows of the steps from `first` to `last`, both included."""
        low, high = np.searchsorted(self.steps, [first, last + 1])
        return slice(int(self.bounds[low]), int(self.bounds[high]))

    def newest(self, rows: slice) -> IntArray:
        """Of each pair and side the newest of some steps' rows."""
        key = 2 * self.pair[rows].astype(np.int64) + self.side[rows]
        newest: IntArray = rows.stop - 1 - np.unique(key[::-1], return_index=True)[1]
        return newest

    def sides(self, rows: Rows) -> tuple[str, ...]:
        """Sides that have a row."""
        return tuple(SIDES[s] for s in np.flatnonzero(np.bincount(self.side[rows], minlength=2)))

    def lone(self, rows: Rows, sides: Sequence[str]) -> int:
        """Pairs that lack one of the sides."""
        counts = np.bincount(self.pair[rows])
        return int(((counts > 0) & (counts < len(sides))).sum())

    # --- frames -----------------------------------------------------------------------------------------------------

    def frame(self, rows: Rows, sides: Sequence[str], with_loss_logp: bool) -> pd.DataFrame:
        """One row per pair that has every one of `sides`; see `pair_rows` for the columns.

        Args:
            with_loss_logp: whether the loss is computed from log-probs of its own; else they are the sums.
        """
        if not sides:
            return pd.DataFrame({letter: pd.Series(dtype=np.float64) for letter in "ab"})
        places, common = self._with_every_side(rows, sides, self.pair)
        return self._filled(places, common, sides, with_loss_logp, self._index(common))

    def all_steps(self, sides: Sequence[str], with_loss_logp: bool) -> tuple[IntArray, IntArray, pd.DataFrame]:
        """Every step's `frame` below the one before, of one step or a thousand at once: (step, pair (index in `ids`),
        frame), a row each."""
        step = np.repeat(np.arange(self.steps.size), np.diff(self.bounds))
        places, common = self._with_every_side(slice(0, self.pair.size), sides, step * self.ids.size + self.pair)
        step, pair = np.divmod(common, max(self.ids.size, 1))
        return self.steps[step], pair, self._filled(places, pair, sides, with_loss_logp, None)

    def _with_every_side(
        self, rows: Rows, sides: Sequence[str], of: npt.NDArray[IntT]
    ) -> tuple[list[Rows], npt.NDArray[IntT]]:
        """(places of each side's rows, what each is `of`) over those of which every side has a row; `of` ascends."""
        places = [self._places(rows, SIDES.index(side)) for side in sides]
        found = [of[at] for at in places]
        if len(found) == 1 or np.array_equal(found[0], found[1]):
            return places, found[0]
        common, first, second = np.intersect1d(found[0], found[1], assume_unique=True, return_indices=True)
        return [_take(places[0], first), _take(places[1], second)], common

    def _filled(
        self,
        places: Sequence[Rows],
        pairs: npt.NDArray[np.integer],
        sides: Sequence[str],
        with_loss_logp: bool,
        index: pd.Index[str] | None,
    ) -> pd.DataFrame:
        columns = _columns(tuple(sides))
        block = np.full((len(columns), pairs.size), np.nan)
        row = dict(zip(columns, block, strict=True))
        for side, at in zip(sides, places, strict=True):
            for name, values in self.values.items():
                row[f"{side}_{name}"][:] = values[at]
            for name, values in self.reference.items():
                row[f"{side}_{_reference_name(name)}"][:] = values[pairs, SIDES.index(side)]
            if not with_loss_logp:
                row[f"{side}_loss_logp"][:] = row[f"{side}_sum_logp"]
                row[f"{side}_ref_loss_logp"][:] = row[f"{side}_ref"]
            letter = "ab"[SIDES.index(side)]
            row[letter][:] = row[f"{side}_loss_logp"] - row[f"{side}_ref_loss_logp"]
        return pd.DataFrame(block.T, index=index, columns=columns, copy=False)

    def _places(self, rows: Rows, side: int) -> Rows:
        """Of some rows those of one side."""
        of = self.side[rows]
        if isinstance(rows, slice) and of.size % 2 == 0 and not of[::2].any() and of[1::2].all():
            return slice(rows.start + side, rows.stop, 2)
        return _take(rows, np.flatnonzero(of == side))

    def _index(self, pairs: npt.NDArray[np.int32]) -> pd.Index[str]:
        """The pairs' ids; one and the same index for the same pairs, which makes frames quick to compare."""
        if pairs.size == self.ids.size:
            return self.ids
        if self._last_index is None or not np.array_equal(self._last_index[0], pairs):
            self._last_index = pairs, self.ids.take(pairs)
        return self._last_index[1]

    def long(self, rows: Rows = slice(None), reference: Sequence[str] = REFERENCE_COLUMNS) -> pd.DataFrame:
        """A row per step, pair and side: `step`, `split`, `pair_id`, `side` (categories but for the step), `VALUES` and
        the reference's columns as `ref_*`."""
        pair, side = self.pair[rows], self.side[rows]
        unknown = np.full(pair.size, np.nan)
        columns = {
            "step": np.repeat(self.steps, np.diff(self.bounds))[rows],
            "split": _category(np.zeros(pair.size, dtype=np.int8), pd.Index([self.name])),
            "pair_id": _category(pair, self.ids),
            "side": _category(side, pd.Index(SIDES)),
            **{name: self.values[name][rows] if name in self.values else unknown for name in VALUES},
            **{
                f"ref_{name}": self.reference[name][pair, side] if name in self.reference else unknown
                for name in reference
            },
        }
        return pd.DataFrame(columns, copy=False)


def _category(codes: npt.NDArray[np.integer], names: pd.Index[str]) -> pd.Categorical[str]:
    return pd.Categorical.from_codes(codes, categories=names)


def _take(rows: Rows, places: IntArray) -> IntArray:
    return rows.start + places if isinstance(rows, slice) else rows[places]


def _reference_name(column: str) -> str:
    return "ref" if column == "sum_logp" else f"ref_{column}"


_COLUMNS: dict[tuple[str, ...], pd.Index[str]] = {}


def _columns(sides: tuple[str, ...]) -> pd.Index[str]:
    if sides not in _COLUMNS:
        own = [*VALUES, *map(_reference_name, REFERENCE_COLUMNS)]
        _COLUMNS[sides] = pd.Index([*(f"{side}_{name}" for side in sides for name in own), "a", "b"])
    return _COLUMNS[sides]


# --- reading ----------------------------------------------------------------------------------------------------------


def read_splits(
    run: Run, steps: Iterable[int] | None = None, splits: Iterable[str] | None = None
) -> dict[str, SplitRows]:
    """split -> its pair rows, of a run that has any; every file of the table is read once.

    Args:
        steps, splits: only the policy's rows of these, and of the step whose policy is the reference.
    """
    table = _read(run, steps, splits)
    names, split = _coded(table, "split")
    ids, pair = _coded(table, "pair_id")
    role, side = (_known(table, name, order) for name, order in (("role", ("policy", "ref")), ("side", SIDES)))
    step = table.column("step").to_numpy()
    columns = {name: of for name in VALUES if (of := table.column(name)).null_count < table.num_rows}
    del table  # what is not recorded, and the keys' text, would stand beside the arrays until the end
    found = {}
    for code, name in enumerate(names):
        rows = np.flatnonzero((split == code) & (role >= 0) & (side >= 0))
        own = np.flatnonzero(np.bincount(pair[rows], minlength=ids.size))
        of_pair = np.zeros(ids.size, dtype=np.int32)
        of_pair[own] = np.arange(own.size, dtype=np.int32)
        key = Keys(step[rows], of_pair[pair[rows]], side[rows], role[rows] == 1)
        found[name] = _split(run, name, ids.take(own), key, rows, columns, last=code == len(names) - 1)
    return found


def _read(run: Run, steps: Iterable[int] | None, splits: Iterable[str] | None) -> pa.Table:
    columns = [*_KEY, *VALUES]
    if steps is None:
        return run.arrow("pairs", columns, splits=splits)
    base = run.info.reference.step
    wanted, splits = {*steps, *(() if base is None else (base,))}, None if splits is None else list(splits)
    policy = run.arrow("pairs", columns, wanted, splits, ["policy"])
    # A reference row stands once, at whatever step it was written.
    return pa.concat_tables([policy, run.arrow("pairs", columns, None, splits, ["ref"])]).unify_dictionaries()


class Keys:
    """What identifies each of a split's rows: step, pair, side, and whether it is the reference's."""

    def __init__(
        self, step: IntArray, pair: npt.NDArray[np.int32], side: npt.NDArray[np.int8], reference: npt.NDArray[np.bool_]
    ) -> None:
        self.step, self.pair, self.side, self.reference = step, pair, side, reference

    @cached_property
    def response(self) -> IntArray:
        """The side of the pair as one number."""
        return 2 * self.pair.astype(np.int64) + self.side

    def last(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """(some rows in the order of steps, pairs and sides, of one key the last; those that came before it)."""
        order = rows[np.lexsort((self.response[rows], self.step[rows]))]  # stable: rows of one key keep their order
        step, response = self.step[order], self.response[order]
        again = (step[1:] == step[:-1]) & (response[1:] == response[:-1])
        return order[np.append(~again, True)] if order.size else order, order[:-1][again]


def _split(
    run: Run, name: str, ids: pd.Index[str], key: Keys, rows: IntArray, columns: dict[str, pa.ChunkedArray], last: bool
) -> SplitRows:
    """A split from its rows of the table's columns, which the last one takes away one by one."""
    policy, twice = key.last(np.flatnonzero(~key.reference))
    reference, twice_ref = key.last(np.flatnonzero(key.reference))
    counts: Counter[int | None] = Counter(key.step[twice].tolist())
    counts[None] = twice_ref.size
    base = run.info.reference.step
    if base is not None and not reference.size:
        # The source says that the policy of one of its steps is the reference (a run scored from its start).
        reference = policy[key.step[policy] == base]
    # A reference row stands once, whatever step it was written at: of several the first.
    reference = np.sort(reference)
    reference = reference[np.unique(key.response[reference], return_index=True)[1]]
    values, of_reference = {}, {}
    for column in [*columns]:
        of_table = _floats(columns.pop(column) if last else columns[column])
        values[column] = of_table[rows[policy]]
        if column in REFERENCE_COLUMNS and not np.isnan(known := of_table[rows[reference]]).all():
            of_reference[column] = np.full((ids.size, 2), np.nan)
            of_reference[column][key.pair[reference], key.side[reference]] = known
    return SplitRows(name, ids, key.step[policy], key.pair[policy], key.side[policy], values, of_reference, counts)


def _coded(table: pa.Table, column: str) -> tuple[pd.Index[str], npt.NDArray[np.int32]]:
    """(a text column's values, ascending; the index in them of each row)."""
    chunk = _one_chunk(table, column)
    names = pd.Index(chunk.dictionary.to_pandas(), dtype="str", name=column)
    order = names.argsort()
    place = np.empty(order.size, dtype=np.int32)
    place[order] = np.arange(order.size, dtype=np.int32)
    codes: npt.NDArray[np.int32] = place[chunk.indices.to_numpy(zero_copy_only=False)]
    return names.take(order), codes


def _known(table: pa.Table, column: str, order: Sequence[str]) -> npt.NDArray[np.int8]:
    """The index in `order` of each value of a text column, -1 for others."""
    chunk = _one_chunk(table, column)
    lookup = np.array([order.index(v) if v in order else -1 for v in chunk.dictionary.to_pylist()] or [-1], np.int8)
    codes: npt.NDArray[np.int8] = lookup[chunk.indices.to_numpy(zero_copy_only=False)]
    return codes


def _one_chunk(table: pa.Table, column: str) -> pa.DictionaryArray:
    combined = table.column(column).combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _floats(column: pa.ChunkedArray) -> FloatArray:
    values: FloatArray = column.to_numpy().astype(np.float64, copy=False)
    return values
