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

from dpo_diag.diagnosis.decompose.alignment import pair_roles
from dpo_diag.diagnosis.pair_rows import REFERENCE, FloatArray, Step
from dpo_diag.records import Run
from dpo_diag.records.schemas import SIDES

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
_PLACE = ("pair_id", "side", "position", "token_id")
_VALUES = ("logp", "is_top1", "logp_no_prompt")


@dataclass(frozen=True, eq=False)
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
    def complete(self) -> BoolArray:
        """Responses without a missing position, (2P,)."""
        holes = np.bincount(self.response, weights=self.token_ids < 0, minlength=self.lengths.size)
        return np.asarray((holes == 0) & (self.lengths > 0))

    def tokens_of(self, response: int) -> Int32Array:
        """Token ids of one response."""
        start = int(self.starts[response])
        return self.token_ids[start : start + int(self.lengths[response])]


@dataclass(frozen=True, eq=False)
class TokenChange:
    """Token log-probs of both steps over the pairs whose tokens stand complete at both.

    Attributes:
        layout: places of all tokens (T,).
        roles: role of each place, index into ROLE_NAMES, (T,).
        values: at the first and at the second step, column -> (T,), NaN where a row or value is missing: always `logp`
            (nats); `is_top1` and `logp_no_prompt` where any row has one.
        usable: responses with every token finite at both steps, (2P,).
        infinite: responses left out because a log-prob is infinite, (2P,).
    """

    layout: TokenLayout
    roles: npt.NDArray[np.int8]
    values: tuple[dict[str, FloatArray], dict[str, FloatArray]]
    usable: BoolArray
    infinite: BoolArray

    @property
    def before(self) -> FloatArray:
        """Log-probs (nats) at the first step, (T,)."""
        return self.values[0]["logp"]

    @property
    def after(self) -> FloatArray:
        """Log-probs (nats) at the second step, (T,)."""
        return self.values[1]["logp"]

    @property
    def places(self) -> BoolArray:
        """Places of usable responses, (T,)."""
        return np.asarray(self.usable[self.layout.response], dtype=bool)

    def side(self, side: str) -> BoolArray:
        """Places of usable responses of one side, (T,)."""
        return np.asarray(self.places & (self.layout.response % 2 == SIDES.index(side)), dtype=bool)


def token_change(
    run: Run,
    split: str,
    pair_ids: Sequence[str],
    from_step: Step,
    to_step: Step,
    reference_step: int | None = None,
) -> TokenChange | None:
    """Token log-probs of two steps; None where the run has no token rows of these pairs at the second one.

    Args:
        reference_step: where the policy is the reference: what the reference's rows lack is read there.
    """
    table = _read(run, split, to_step, _VALUES)
    layout = _layout(table, pair_ids) if table is not None else None
    if table is None or layout is None:
        return None
    before, after = token_values(run, layout, split, from_step, _VALUES), _placed(table, layout, _VALUES)
    if from_step == REFERENCE and reference_step is not None:
        own = token_values(run, layout, split, reference_step, _VALUES)
        before = {name: np.where(np.isnan(values), own[name], values) for name, values in before.items()}
    bad = ~(np.isfinite(before["logp"]) & np.isfinite(after["logp"]))
    endless = np.isinf(before["logp"]) | np.isinf(after["logp"])
    responses = layout.lengths.size
    usable = (np.bincount(layout.response, weights=bad, minlength=responses) == 0) & layout.complete
    infinite = np.bincount(layout.response, weights=endless, minlength=responses) > 0
    roles = assign_roles(layout, end_token(run, layout))
    return TokenChange(layout, roles, (_recorded(before), _recorded(after)), usable, infinite)


def _recorded(values: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Without the columns that no row fills, which would cost memory and tell nothing."""
    return {name: v for name, v in values.items() if name == "logp" or not np.isnan(v).all()}


def any_layout(run: Run, split: str, pair_ids: Sequence[str], steps: Sequence[int]) -> TokenLayout | None:
    """The pairs' token ids from whichever rows hold them: they are the same at every step, so one step is enough."""
    candidates: list[Step] = [*sorted({0, *steps}), REFERENCE]
    for step in candidates:
        table = _read(run, split, step, ())
        if table is not None and (layout := _layout(table, pair_ids)) is not None:
            return layout
    return None


def token_values(
    run: Run, layout: TokenLayout, split: str, step: Step, columns: Sequence[str]
) -> dict[str, FloatArray]:
    """Columns of one step (or of the reference) at the layout's places: name -> (T,), NaN where there is no value.

    A row whose token is not the layout's (another text or tokenizer under the same pair) is left out: its place is NaN.
    """
    table = _read(run, split, step, columns)
    return _placed(table, layout, columns) if table is not None else {c: np.full(layout.size, np.nan) for c in columns}


def _read(run: Run, split: str, step: Step, columns: Sequence[str]) -> pa.Table | None:
    """Token rows of a step; the reference's stand once, at whichever step. None for a run without token rows."""
    if not run.has("tokens"):
        return None
    steps, role = (None, "ref") if step == REFERENCE else ([int(step)], "policy")
    return run.arrow("tokens", [*_PLACE, *columns], steps, [split], [role])


def _layout(table: pa.Table, pair_ids: Sequence[str]) -> TokenLayout | None:
    """Places of the rows of some pairs; None where there are none."""
    wanted = sorted(str(p) for p in pair_ids)
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


def _placed(table: pa.Table, layout: TokenLayout, columns: Sequence[str]) -> dict[str, FloatArray]:
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


def _responses(table: pa.Table, pairs: dict[str, int]) -> IntArray:
    """Response index of each row, -1 for rows of other pairs."""
    pair = _codes(table.column("pair_id"), pairs)
    side = _codes(table.column("side"), {s: i for i, s in enumerate(SIDES)})
    return np.where((pair >= 0) & (side >= 0), 2 * pair + side, -1)


def _codes(column: pa.ChunkedArray, order: dict[str, int]) -> IntArray:
    """Index in `order` of each value of a text column, -1 for others; dictionaries are looked up once per entry."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    parts = []
    for chunk in column.chunks:
        lookup = np.array([order.get(v, -1) for v in chunk.dictionary.to_pylist()] or [-1], dtype=np.int64)
        parts.append(lookup[chunk.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def end_token(run: Run, layout: TokenLayout) -> int | None:
    """The end token: the tokenizer's as run.json names it, else the last token of at least half of all answers."""
    if run.info.tokenizer.eos_token_id is not None:
        return run.info.tokenizer.eos_token_id
    filled = layout.lengths > 0
    last = layout.token_ids[(layout.starts + layout.lengths - 1)[filled]]
    values, counts = np.unique(last[last >= 0], return_counts=True)
    if not values.size or counts.max() < 0.5 * filled.sum():
        return None
    return int(values[counts.argmax()])


def assign_roles(layout: TokenLayout, end: int | None) -> npt.NDArray[np.int8]:
    """Role of every place, (T,), from the alignment of each pair's two answers."""
    roles = np.empty(layout.size, dtype=np.int8)
    for pair in range(len(layout.pair_ids)):
        both = (2 * pair, 2 * pair + 1)
        parts = pair_roles(layout.tokens_of(both[0]), layout.tokens_of(both[1]), end)
        for response, part in zip(both, parts, strict=True):
            start = int(layout.starts[response])
            roles[start : start + part.size] = part
    return roles
