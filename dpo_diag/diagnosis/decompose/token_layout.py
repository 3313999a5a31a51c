"""Token rows as dense arrays: every token of every aligned pair has one place, the same at each step.

Rows are read one step at a time with the columns that are needed, and scattered to their places: a row that was written
twice lands on itself, a missing one stays NaN, whatever the order of rows and files. Memory is that of one step's
tokens times the columns held at once, however many steps the run has; time is linear in rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dpo_diag.records import Run
from dpo_diag.records.schemas import SIDES

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenLayout:
    """Places of tokens. Response 2p is pair p's chosen, 2p + 1 its rejected answer.

    Attributes:
        pair_ids: pairs (P,), ascending.
        starts, lengths: first place and number of tokens of each response, (2P,); length 0 where a side has no rows.
        token_ids: vocabulary id at each place, (T,); -1 where a position is missing.
        response: response index at each place, (T,).
    """

    pair_ids: list[str]
    starts: IntArray
    lengths: IntArray
    token_ids: Int32Array
    response: Int32Array

    @property
    def size(self) -> int:
        return int(self.token_ids.size)

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Responses without a missing position, (2P,)."""
        holes = np.bincount(self.response, weights=self.token_ids < 0, minlength=self.lengths.size)
        return np.asarray((holes == 0) & (self.lengths > 0))

    def tokens_of(self, response: int) -> Int32Array:
        """Token ids of one response."""
        start = int(self.starts[response])
        return self.token_ids[start : start + int(self.lengths[response])]


def _codes(column: pa.ChunkedArray, order: dict[str, int]) -> IntArray:
    """Index in `order` of each value of a text column, -1 for others; dictionaries are looked up once per entry."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    parts = []
    for chunk in column.chunks:
        lookup = np.array([order.get(v, -1) for v in chunk.dictionary.to_pylist()] or [-1], dtype=np.int64)
        parts.append(lookup[chunk.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _responses(table: pa.Table, pairs: dict[str, int]) -> IntArray:
    """Response index of each row, -1 for rows of other pairs."""
    pair = _codes(table.column("pair_id"), pairs)
    side = _codes(table.column("side"), {s: i for i, s in enumerate(SIDES)})
    return np.where((pair >= 0) & (side >= 0), 2 * pair + side, -1)


def make_layout(run: Run, step: int, split: str, pair_ids: Sequence[str], role: str = "policy") -> TokenLayout | None:
    """Places from the rows of one step; None where the run has no token rows of these pairs at that step."""
    if not run.has("tokens"):
        return None
    wanted = sorted(str(p) for p in pair_ids)
    columns = ["pair_id", "side", "position", "token_id"]
    table = run.arrow("tokens", columns, [step], [split], [role])
    response = _responses(table, {p: i for i, p in enumerate(wanted)})
    position = table.column("position").to_numpy().astype(np.int64)
    keep = (response >= 0) & (position >= 0)
    if not keep.any():
        return None
    lengths = np.zeros(2 * len(wanted), dtype=np.int64)
    np.maximum.at(lengths, response[keep], position[keep] + 1)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    token_ids = np.full(int(lengths.sum()), -1, dtype=np.int32)
    token_ids[starts[response[keep]] + position[keep]] = table.column("token_id").to_numpy()[keep]
    response_of = np.repeat(np.arange(lengths.size, dtype=np.int32), lengths)
    return TokenLayout(wanted, starts, lengths, token_ids, response_of)


def fill(
    run: Run, layout: TokenLayout, step: int | None, split: str, columns: Sequence[str], role: str = "policy"
) -> dict[str, FloatArray]:
    """Columns of one step at the layout's places: name -> (T,) float64, NaN where there is no row or no value.

    Args:
        step: None reads every step (reference rows stand once, at whichever step).

    A row whose token is not the layout's (another text or tokenizer under the same pair) is left out: its place is NaN.
    """
    names = ["pair_id", "side", "position", "token_id", *columns]
    table = run.arrow("tokens", names, None if step is None else [step], [split], [role])
    response = _responses(table, {p: i for i, p in enumerate(layout.pair_ids)})
    position = table.column("position").to_numpy().astype(np.int64)
    keep = (response >= 0) & (position >= 0)
    keep[keep] = position[keep] < layout.lengths[response[keep]]
    places = layout.starts[response[keep]] + position[keep]
    same = layout.token_ids[places] == table.column("token_id").to_numpy()[keep]
    result: dict[str, FloatArray] = {}
    for name in columns:
        values: Any = table.column(name)
        if pa.types.is_boolean(values.type):
            values = pc.cast(values, pa.int8())
        dense = np.full(layout.size, np.nan)
        dense[places[same]] = values.to_numpy().astype(np.float64)[keep][same]
        result[name] = dense
    return result
