"""The two-step view of a run: which rows are compared, and the pairs and tokens that both steps hold, made once.

A fixed evaluation set comes before anything else: only there do the same pairs return at every step. The reference is
where a comparison begins wherever it was measured and is what the policy started from (`PairRows.start`); `from_step`
asks for another start, `Aligned.from_own_start` and `Aligned.against_reference` for either one. Pairs recorded at
one of the two steps only are counted and named in `coverage`, never dropped in silence.

Pairs count in response tokens. Where a source gives log-prob sums but no token counts (many public dumps), the UTF-8
bytes of the text stand in: every formula holds per byte as it does per token, and the result says `"unit": "byte"`.
Byte-level perplexities are smaller numbers (a token has about four bytes) and compare across tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.pair_rows import REFERENCE, FloatArray, PairRows, Step, two_steps
from dpo_diag.diagnosis.token_rows import BoolArray, TokenChange, TokenLayout, any_layout, token_change
from dpo_diag.errors import DiagError
from dpo_diag.records import Run, metrics
from dpo_diag.text import plural

COUNTS = {"token": "n_tokens", "byte": "n_bytes"}
TRAIN_WINDOW_PAIRS = 64
"""Training batches hold other pairs at every step; explained against the reference, the newest this many are taken."""
_NAMED = 20
"""Pairs that are named where some are left out."""


def unit_that_covers(covered: Mapping[str, int]) -> str | None:
    """The unit of `COUNTS` that counts more responses, tokens first where both count as many; None where none does."""
    return max(COUNTS, key=lambda unit: covered[unit]) if any(covered.values()) else None


@dataclass(frozen=True, eq=False)
class SideArrays:
    """sum_logp (nats) and counts of one side at both steps; only responses with finite numbers and a positive count.

    `keep` marks those rows of `Aligned.pairs`; `excluded` counts the others by reason and names some.
    """

    side: str
    unit: str
    keep: BoolArray
    sum_from: FloatArray
    n_from: FloatArray
    sum_to: FloatArray
    n_to: FloatArray
    pair_ids: npt.NDArray[np.object_]
    excluded: dict[str, Any]

    @property
    def args(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """(sum_from, n_from, sum_to, n_to), as the decompositions take them."""
        return self.sum_from, self.n_from, self.sum_to, self.n_to


def side_arrays(pairs: pd.DataFrame, side: str, unit: str) -> SideArrays:
    """The side's measurable responses (shape (kept,) each); infinite, unknown and empty ones are counted and named.

    Args:
        pairs: of `two_steps`.
        unit: a key of COUNTS.
    """
    s0, s1 = (pairs[f"{side}_sum_logp_{w}"].to_numpy(dtype=np.float64) for w in (0, 1))
    n0, n1 = (pairs[f"{side}_{COUNTS[unit]}_{w}"].to_numpy(dtype=np.float64) for w in (0, 1))
    uncounted = np.isnan(n0) | np.isnan(n1)
    reasons = {
        "infinite": np.isinf(s0) | np.isinf(s1),
        "nan": np.isnan(s0) | np.isnan(s1),
        "no_count": uncounted,
        "empty": ~uncounted & ((n0 <= 0) | (n1 <= 0)),
    }
    keep = ~np.logical_or.reduce(list(reasons.values()))
    ids = pairs["pair_id"].astype(str).to_numpy(dtype=object)
    excluded = {
        name: {"n": int(mask.sum()), "pair_ids": [str(i) for i in ids[mask][:_NAMED]]}
        for name, mask in reasons.items()
        if mask.any()
    }
    return SideArrays(side, unit, keep, s0[keep], n0[keep], s1[keep], n1[keep], ids[keep], excluded)


@dataclass(frozen=True, eq=False)
class Aligned:
    """What is compared with what.

    Attributes:
        rows: the run's pair rows, for any step of any split.
        split: the set; rows of other splits are not touched.
        from_step, to_step: optimizer steps; `from_step` may be REFERENCE.
        steps: all steps at which the split has policy rows, ascending.
        sides: sides with rows: chosen and rejected, or chosen alone (SFT).
        before, after: the two steps' frames (see `pair_rows`); they may hold pairs that the other one lacks.
        coverage: counts of what was left out, and why.
        notes: sentences a reader must know, e.g. that training batches were compared with the reference.
    """

    rows: PairRows
    split: str
    from_step: Step
    to_step: int
    steps: list[int]
    sides: tuple[str, ...]
    before: pd.DataFrame
    after: pd.DataFrame
    coverage: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def run(self) -> Run:
        return self.rows.run

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row per pair at both steps, ordered by pair_id, with the columns of `two_steps`."""
        return two_steps(self.before, self.after)

    @cached_property
    def _ids(self) -> pd.Index[str]:
        """The aligned pairs; the very index of a step's frame where that holds exactly these."""
        index, ids = self.after.index, pd.Index(self.pairs["pair_id"])
        return index if index.equals(ids) else ids

    @property
    def has_reference(self) -> bool:
        """Whether every aligned pair has the reference's log-probs."""
        return bool(len(self.pairs)) and not bool(self.pairs[["a1", "b1"]].isna().any(axis=None))

    def at(self, step: Step) -> pd.DataFrame | None:
        """The frame of a step (or of the reference) over exactly the aligned pairs, in their order; None where it lacks
        some of them."""
        frame, ids = self.rows.at(self.split, step, self.sides), self._ids
        if frame.index.is_(ids):
            return frame
        places = frame.index.get_indexer(ids)
        return frame.take(places) if (places >= 0).all() else None

    def steps_between(self) -> list[int]:
        """Measured steps of the policy from the first to the second one, both included."""
        first = -1 if self.from_step == REFERENCE else int(self.from_step)
        return [s for s in self.steps if first <= s <= self.to_step]

    def path(self) -> list[tuple[int, Step]]:
        """What lies between the two steps, as (place on the axis of steps, whose frame). The reference stands at step 0
        where the comparison begins there and no policy was measured at it."""
        steps = self.steps_between()
        begins = self.from_step == REFERENCE and steps[:1] != [0] and self.rows.reference_step(self.split) is None
        return [*([(0, REFERENCE)] if begins and self.at(REFERENCE) is not None else []), *((s, s) for s in steps)]

    def against_reference(self) -> Aligned:
        """The reference beside `to_step`, whether or not the policy started from it."""
        return self if self.from_step == REFERENCE else align(self.rows, REFERENCE, self.to_step, self.split)

    def from_own_start(self) -> Aligned | None:
        """The policy's first measured step beside `to_step`, whatever the reference; None where `to_step` is it."""
        first = self.steps[0]
        if first >= self.to_step:
            return None
        return self if self.from_step == first else align(self.rows, first, self.to_step, self.split)

    # --- responses --------------------------------------------------------------------------------------------------

    @cached_property
    def unit_and_note(self) -> tuple[str | None, str | None]:
        """("token" | "byte", note) or (None, why nothing can be counted): the unit that covers more responses, tokens
        first where both cover all."""
        if not len(self.pairs):
            return None, "no pair is recorded at both steps"
        covered = {
            unit: sum(
                int((self.pairs[[f"{s}_{column}_0", f"{s}_{column}_1"]] > 0).all(axis=1).sum()) for s in self.sides
            )
            for unit, column in COUNTS.items()
        }
        unit = unit_that_covers(covered)
        if unit is None:
            return None, "the records hold neither token counts nor bytes of the responses"
        if unit == "token":
            return unit, None
        lacking = "token counts are missing for some responses" if covered["token"] else "no token counts are recorded"
        return unit, f"{lacking}: perplexities are per UTF-8 byte, not per token"

    @property
    def unit(self) -> str | None:
        """What responses are counted in: "token", "byte", or None where nothing counts them."""
        return self.unit_and_note[0]

    @cached_property
    def responses(self) -> dict[str, SideArrays]:
        """side -> its measurable responses; sides without any are left out."""
        if self.unit is None:
            return {}
        arrays = {s: side_arrays(self.pairs, s, self.unit) for s in self.sides}
        return {s: a for s, a in arrays.items() if a.keep.any()}

    def change(self, side: str) -> FloatArray:
        """Change of a side's log-prob sums (nats), shape (pairs,)."""
        after, before = (self.pairs[f"{side}_sum_logp_{w}"].to_numpy(dtype=np.float64) for w in (1, 0))
        with np.errstate(invalid="ignore"):
            return np.asarray(after - before)

    def bits_per_byte(self, side: str) -> dict[str, Any]:
        """{"from", "to", "delta", "n_pairs"} over the responses with finite log-probs and known bytes, or
        {"not_applicable": why}."""
        arrays = side_arrays(self.pairs, side, "byte")
        if not arrays.keep.any():
            return {"not_applicable": "no bytes of the responses are recorded"}
        start = metrics.bits_per_byte(arrays.sum_from, arrays.n_from)
        end = metrics.bits_per_byte(arrays.sum_to, arrays.n_to)
        return {"from": start, "to": end, "delta": end - start, "n_pairs": int(arrays.keep.sum())}

    # --- tokens -----------------------------------------------------------------------------------------------------

    @cached_property
    def tokens(self) -> TokenChange | None:
        """Token log-probs of both steps; None where the run has no token rows of these pairs at `to_step`."""
        if not len(self.pairs):
            return None
        ids, same = list(self.pairs["pair_id"]), self.rows.reference_step(self.split)
        return token_change(self.run, self.split, ids, self.from_step, self.to_step, same)

    @cached_property
    def layout(self) -> TokenLayout | None:
        """The pairs' token ids, from `tokens` or whichever step records them."""
        if self.tokens is not None:
            return self.tokens.layout
        return any_layout(self.run, self.split, list(self.pairs["pair_id"]), self.steps)


def align(
    run: Run | PairRows, from_step: Step | None = None, to_step: int | None = None, split: str | None = None
) -> Aligned:
    """Choose split and steps, and align the pairs.

    Args:
        run: a run, or its rows where they were read already.
        from_step: default the reference, or the first step of the split (see `PairRows.start`).
        to_step: default the last step of the split.
        split: default the first of `PairRows.steps`.

    Raises:
        DiagError: no pair records, an unknown split or step, steps in the wrong order.
    """
    rows = run if isinstance(run, PairRows) else PairRows(run)
    if not rows.steps:
        raise DiagError(
            "the run holds no pair records", where=rows.run.name, hint="score its checkpoints with dpo-score"
        )
    split = next(iter(rows.steps)) if split is None else split
    if split not in rows.steps:
        raise DiagError("no such split", got=split, expected=f"one of {list(rows.steps)}", usage=True)
    steps = rows.steps[split]
    to_step = steps[-1] if to_step is None else _known(to_step, steps, "--to")
    why = None
    if from_step is None:
        from_step, why = rows.start(split, to_step)
    elif from_step != REFERENCE:
        from_step = _known(from_step, steps, "--from")
        if from_step >= to_step:
            raise DiagError("--from must lie before --to", got=f"{from_step} and {to_step}", usage=True)
    if rows.run.role(split) == "train" and from_step == REFERENCE:
        return _training_window(rows, split, to_step)
    aligned = _between(rows, split, from_step, to_step)
    if not len(aligned.pairs) and rows.run.role(split) == "train":
        return _training_window(rows, split, to_step)
    return aligned if why is None else replace(aligned, notes=(*aligned.notes, why))


def _known(step: Step, steps: list[int], option: str) -> int:
    try:
        number = int(step)
    except ValueError as error:
        raise DiagError(
            "not a step", where=option, got=step, expected=f"a number or {REFERENCE}", usage=True
        ) from error
    if number not in steps:
        shown = steps if len(steps) <= 12 else [*steps[:6], "...", *steps[-5:]]
        raise DiagError(
            "no pair records at this step", where=option, got=number, expected=f"one of {shown}", usage=True
        )
    return number


def _between(rows: PairRows, split: str, from_step: Step, to_step: int) -> Aligned:
    sides = rows.sides(split, to_step)
    after = rows.at(split, to_step, sides)
    before = rows.as_reference(split, after) if from_step == REFERENCE else rows.at(split, from_step, sides)
    of_split = rows.splits[split]
    lone = sum(of_split.lone(of_split.at(int(s)), sides) for s in (to_step, from_step) if s != REFERENCE)
    duplicates = rows.duplicates(split, *{from_step, to_step, REFERENCE})
    return _aligned(rows, split, from_step, to_step, sides, before, after, lone, duplicates)


def _aligned(
    rows: PairRows,
    split: str,
    from_step: Step,
    to_step: int,
    sides: tuple[str, ...],
    before: pd.DataFrame,
    after: pd.DataFrame,
    lone: int,
    duplicates: int,
) -> Aligned:
    both = len(before.index.intersection(after.index))
    coverage = {
        "aligned": both, "only_from": len(before) - both, "only_to": len(after) - both, "one_side_only": lone,
        "duplicate_rows": duplicates,
    }  # fmt: skip
    left = coverage["only_from"] + coverage["only_to"]
    notes = (f"{left} pairs are recorded at one of the two steps only and are left out",) if left else ()
    return Aligned(rows, split, from_step, to_step, rows.steps[split], sides, before, after, coverage, notes)


def _training_window(rows: PairRows, split: str, to_step: int) -> Aligned:
    """Training batches never repeat a pair: compare the newest pairs, each at its own step, with the reference."""
    of_split, used = rows.splits[split], list[int]()
    taken = 0
    for step in reversed([s for s in rows.steps[split] if s <= to_step]):
        used.append(step)
        taken += np.unique(of_split.pair[of_split.at(step)]).size
        if taken >= TRAIN_WINDOW_PAIRS:
            break
    window = of_split.newest(of_split.between(used[-1], to_step))
    sides = of_split.sides(window)
    after = rows.frame(split, window, sides)
    lone = of_split.lone(window, sides)
    aligned = _aligned(rows, split, REFERENCE, to_step, sides, rows.as_reference(split, after), after, lone, 0)
    span = f"step {used[0]}" if len(used) == 1 else f"steps {used[-1]} to {used[0]}"
    note = (
        f"training batches hold other pairs at every step, so {plural(len(aligned.pairs), 'pair')} of "
        f"{span} {'is' if len(aligned.pairs) == 1 else 'are'} compared with the reference"
    )
    return replace(aligned, notes=(*aligned.notes, note))
