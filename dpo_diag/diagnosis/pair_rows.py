"""The pair rows of a run: every split is read once, and each step of it is one frame with one row per pair.

Columns of a step's frame (index: pair_id, ascending), for each side that the split records:

    {side}_sum_logp, {side}_n_tokens, ...   the policy's values (`VALUES`), float64, NaN where unknown
    {side}_ref, {side}_ref_n_tokens, ...    the reference's (`{side}_ref` is its sum_logp)
    {side}_loss_logp                        the log-prob that the loss uses: sum_logp, but under LD-DPO
    a, b                                    log-ratios to the reference that the loss sees (nats), chosen and rejected

`two_steps` puts two such frames beside each other, with `_0` and `_1` (a0, a1, b0, b1) behind the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import union_categoricals

from dpo_diag.diagnosis.said import REFERENCE as REFERENCE
from dpo_diag.diagnosis.said import Step as Step
from dpo_diag.diagnosis.said import step_name as step_name
from dpo_diag.diagnosis.split_rows import CATEGORIES, VALUES, Rows, SplitRows, read_splits
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.records import Run
from dpo_diag.records.schemas import SIDES
from dpo_diag.records.tables import REFERENCE_COLUMNS
from dpo_diag.thresholds import load_thresholds

FloatArray = npt.NDArray[np.float64]
_OF_THE_TEXT = ("n_tokens", "n_bytes", "n_truncated", "weight")
"""Values that belong to the pair and its text, whichever model reads it."""
PAIR_BETA = "chosen_beta"
"""The column of a pair's own beta, which stands on both sides' rows."""
_KEPT_FRAMES = 3
"""Step frames held at a time: the checks come back to the first and the last step."""


class PairRows:
    """The pair rows of one run, read when first asked for and kept.

    Args:
        tolerance: nats per response by which the policy may differ from its reference before any training (rounding);
            by default the threshold `reference_tolerance_nats`.
    """

    def __init__(self, run: Run, tolerance: float | None = None) -> None:
        self.run = run
        self._tolerance = tolerance
        self._frames: dict[tuple[str, Step, tuple[str, ...]], pd.DataFrame] = {}

    @cached_property
    def splits(self) -> dict[str, SplitRows]:
        """split -> its rows; the table is read here, once."""
        return read_splits(self.run)

    @cached_property
    def steps(self) -> dict[str, list[int]]:
        """split -> ascending steps with policy rows, best split first; empty for a run without pair records."""
        steps = {name: rows.steps.tolist() for name, rows in self.splits.items() if rows.steps.size}
        best = self.run.preferred(steps)
        # A set measured once can only be compared with the reference: sets measured twice come first.
        once = [s for s in best if len(steps[s]) < 2 and self.run.role(s) != "train"]
        return {s: steps[s] for s in [*(s for s in best if s not in once), *once]}

    @cached_property
    def prompts(self) -> pd.Series | None:
        """pair_id -> number of its prompt (text, and what else the model is shown beside it), of the pairs whose prompt
        is recorded; None where no two of them share one. An empty prompt is none: nothing is shared there."""
        texts = self.run.texts
        known = texts[texts["prompt"].fillna("").str.strip() != ""].set_index("pair_id")
        if not known[["prompt", "beside"]].duplicated().any():
            return None
        return known.groupby(["prompt", "beside"], dropna=False, observed=True).ngroup()

    @cached_property
    def all(self) -> pd.DataFrame:
        """Every policy row of every split, best split first (see `SplitRows.long`); of the reference its sums and token
        counts."""
        frames = [self.splits[name].long(reference=("sum_logp", "n_tokens")) for name in self.steps]
        if len(frames) < 2:
            return frames[0] if frames else self.run.pairs
        stacked = pd.concat([frame.drop(columns=CATEGORIES) for frame in frames], ignore_index=True)
        named = {c: union_categoricals([f[c] for f in frames], sort_categories=True) for c in CATEGORIES}
        return stacked.assign(**named)

    def duplicates(self, split: str, *steps: Step) -> int:
        """Rows of these steps (REFERENCE: of the reference) that were written more than once."""
        return sum(self.splits[split].twice[None if step == REFERENCE else int(step)] for step in steps)

    @cached_property
    def at_start(self) -> pd.DataFrame:
        """Policy rows from before any training (step 0), with `gap`: |sum_logp - the reference's| in nats, finite.

        Empty where there are none, or where the run declares which step's policy is the reference. A run scored at
        step 0 alone shows no start either: that is where a checkpoint stands whose step nothing names.
        """
        parts = [self.rows(split, 0) for split, steps in self.steps.items() if 0 in steps]
        steps = {step for of_split in self.steps.values() for step in of_split}
        if not parts or self.run.info.reference.step is not None or (self.run.kind == "scored" and steps == {0}):
            return pd.DataFrame(columns=["step", "split", "pair_id", "side", "gap"])
        rows = pd.concat(parts, ignore_index=True)
        rows["gap"] = (rows["sum_logp"] - rows["ref_sum_logp"]).abs()
        measured: pd.DataFrame = rows[np.isfinite(rows["gap"])]
        return measured

    @cached_property
    def reference_gap(self) -> float | None:
        """Mean |log-ratio| (nats per response) before any training where that is beyond rounding: the policy did not
        start at its reference. None where it did, or where the start was not measured."""
        least = self._tolerance if self._tolerance is not None else load_thresholds()["reference_tolerance_nats"]
        gap = float(self.at_start["gap"].mean()) if len(self.at_start) else 0.0
        return gap if gap > least else None

    def start(self, split: str, to_step: int) -> tuple[Step, str | None]:
        """Where a comparison with `to_step` begins, and a sentence on why where that is not the usual place.

        The reference, wherever it was measured on the pairs of `to_step`; the first measured step where it was not, or
        where it is not what the policy started from: from it nothing was learned or lost.
        """
        first = self.steps[split][0]
        if first >= to_step:
            return REFERENCE, None
        rows, reference = self.splits[split], self.splits[split].reference.get("sum_logp")
        pairs_after, sides_after = (of[rows.at(to_step)] for of in (rows.pair, rows.side))
        if reference is None or not (known := ~np.isnan(reference[pairs_after, sides_after])).any():
            return first, None
        returning = np.isin(pairs_after, rows.pair[rows.at(first)])
        if known.sum() < returning.sum():
            scored, pairs = (np.unique(of).size for of in (pairs_after[known], pairs_after))
            return first, f"the reference was measured on {scored} of {pairs} pairs only, so step {first} is the start"
        if self.reference_gap is not None:
            return first, (
                f"the policy started {self.reference_gap:.3g} nats per response away from its reference, so its own "
                f"step {first} is the start, not the reference"
            )
        return REFERENCE, None

    def rows(self, split: str, step: int) -> pd.DataFrame:
        """A split's rows of one step, a row per pair and side (see `SplitRows.long`); ids and names are text."""
        rows = self.splits[split]
        return rows.long(rows.at(step)).astype({"split": "str", "pair_id": "str", "side": "str"})

    def sides(self, split: str, step: int) -> tuple[str, ...]:
        """Sides with rows at a step: chosen and rejected, or chosen alone (SFT)."""
        return self.splits[split].sides(self.splits[split].at(step))

    def at(self, split: str, step: Step, sides: tuple[str, ...] | None = None) -> pd.DataFrame:
        """The frame of a step, or of the reference (the texts and counts are then those of the last step).

        Args:
            sides: pairs without one of these are left out; default the sides that the step records.
        """
        at = self.steps[split][-1] if step == REFERENCE else int(step)
        sides = self.sides(split, at) if sides is None else sides
        key = (split, step, sides)
        if key not in self._frames:
            if len(self._frames) >= _KEPT_FRAMES:
                self._frames.pop(next(iter(self._frames)))
            frame = self.frame(split, self.splits[split].at(at), sides)
            self._frames[key] = self.as_reference(split, frame) if step == REFERENCE else frame
        return self._frames[key]

    def as_reference(self, split: str, frame: pd.DataFrame) -> pd.DataFrame:
        """A step's frame as the reference would have written it (see `as_reference`); what the reference's rows lack
        (entropies where its log-probs were precomputed) comes from the policy's step that is the reference."""
        reference, step = as_reference(frame), self.reference_step(split)
        if PAIR_BETA in reference and self.run.info.loss is not None:
            reference[PAIR_BETA] = self.run.info.loss.beta  # no pair has another where policy and reference are one
        if step is None or reference.empty:
            return reference
        sides = tuple(side for side in SIDES if f"{side}_ref" in reference)
        own = self.at(split, step, sides)
        own = own if own.index.is_(reference.index) else own.reindex(reference.index)
        return reference.where(reference.notna(), own)

    def reference_step(self, split: str) -> int | None:
        """The step at which the policy is the reference: the declared one, or step 0 where both wrote the same numbers;
        None where that is not known of this split."""
        declared = self.run.info.reference.step
        if declared is not None:
            return declared if declared in self.steps[split] else None
        measured = len(self.at_start) > 0 and (self.at_start["split"] == split).any()
        return 0 if measured and self.reference_gap is None else None

    def frame(self, split: str, rows: Rows, sides: tuple[str, ...]) -> pd.DataFrame:
        """Some of a split's rows, of which each pair and side stands once, as a step's frame: pairs that have every one
        of `sides`."""
        return self.splits[split].frame(rows, sides, self.uses_loss_logp)

    @property
    def uses_loss_logp(self) -> bool:
        """Whether the loss is computed from other log-probs than the sums (LD-DPO)."""
        return bool(self.run.info.loss and self.run.info.loss.ld_alpha)


def _with_ratios(frame: pd.DataFrame, sides: Sequence[str]) -> pd.DataFrame:
    for side, letter in zip(SIDES, "ab", strict=True):
        known = side in sides
        frame[letter] = frame[f"{side}_loss_logp"] - frame[f"{side}_ref_loss_logp"] if known else np.nan
    return frame


def as_reference(frame: pd.DataFrame) -> pd.DataFrame:
    """A step's frame as the reference would have written it: pairs that it scored; what it did not measure is NaN."""
    sides = [s for s in SIDES if f"{s}_ref" in frame]
    known = frame[[f"{s}_ref" for s in sides]].notna().all(axis=1)
    reference = frame.copy() if known.all() else frame.loc[known].copy()
    for side in sides:
        for value in VALUES:
            column = f"{side}_{value}"
            if value in REFERENCE_COLUMNS:
                own = reference[f"{side}_ref" if value == "sum_logp" else f"{side}_ref_{value}"]
                reference[column] = own.fillna(reference[column]) if value in _OF_THE_TEXT else own
            elif value not in _OF_THE_TEXT:
                reference[column] = np.nan
    return _with_ratios(reference, sides)


def two_steps(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Two steps' frames beside each other, over the pairs that both hold, ordered by pair_id.

    Columns: `pair_id`, `{side}_{value}_{0|1}` (0 = before, 1 = after), `{side}_ref` (of the later frame), and
    a0, b0, a1, b1.
    """
    both = _in_both(before, after)
    values = [c for c in after.columns if "_ref" not in c]
    parts = []
    for when, frame in ((0, before), (1, after)):
        part = _of_pairs(frame, both)[values]
        parts.append(part.set_axis([column_at(c, when) for c in values], axis=1))
    references = _of_pairs(after, both)[[c for c in after.columns if c.endswith("_ref")]]
    return pd.concat([*parts, references], axis=1).rename_axis("pair_id").reset_index()


def _in_both(before: pd.DataFrame, after: pd.DataFrame) -> pd.Index[str]:
    """The pairs of two frames, ascending; the index itself where it is one, as it is for the frames of one set."""
    if before.index.is_(after.index):
        return before.index
    return before.index.intersection(after.index).sort_values()


def _of_pairs(frame: pd.DataFrame, pairs: pd.Index[str]) -> pd.DataFrame:
    return frame if frame.index.is_(pairs) else frame.loc[pairs]


def finite_at_both(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two frames over the pairs whose log-prob sums are finite at both steps, in one order."""
    both = _in_both(before, after)
    first, last = _of_pairs(before, both), _of_pairs(after, both)
    sums = [c for c in after.columns if c.endswith("_sum_logp") and "_ref" not in c]
    keep = np.isfinite(first[sums].to_numpy()).all(axis=1) & np.isfinite(last[sums].to_numpy()).all(axis=1)
    return first.loc[keep], last.loc[keep]


def needed_columns(spec: LossSpec) -> tuple[list[str], list[str]]:
    """Columns of a step's frame that a loss looks at, of the chosen and of the rejected side."""
    chosen, rejected = (["a"], ["b"]) if spec.needs_reference else ([], [])
    chosen += [column for field, column in _CHOSEN.items() if field in spec.inputs]
    rejected += [column for field, column in _REJECTED.items() if field in spec.inputs]
    if spec.use_weighting:
        chosen.append("chosen_weight")
    return chosen, rejected


_CHOSEN = {"chosen_sum_logp": "chosen_sum_logp", "n_chosen": "chosen_n_tokens", "beta": PAIR_BETA}
_REJECTED = {"rejected_sum_logp": "rejected_sum_logp", "n_rejected": "rejected_n_tokens"}
"""Fields of `losses.Pairs` and the columns of a step's frame that hold them."""


def column_at(name: str, when: int | None) -> str:
    """The column of `two_steps` that holds a step frame's column at one of the two steps (0 or 1)."""
    return name if when is None else f"{name}{when}" if name in ("a", "b") else f"{name}_{when}"


def column_of(pairs: pd.DataFrame, name: str, when: int | None) -> FloatArray:
    """That column's values, shape (pairs,).

    Raises:
        DiagError: not one of them is known.
    """
    label = column_at(name, when)
    values = pairs[label].to_numpy(dtype=np.float64) if label in pairs else np.full(len(pairs), np.nan)
    if len(values) and np.isnan(values).all():
        raise DiagError(f"{label} is not recorded", where="the loss", hint="record full pair rows")
    return values


def pair_loss(
    spec: LossSpec, pairs: pd.DataFrame, chosen_at: int | None = None, rejected_at: int | None = None,
    beta_at: int | None = None,
) -> FloatArray:  # fmt: skip
    """Loss of each pair, shape (pairs,), from a step's frame or from `two_steps`.

    Args:
        chosen_at, rejected_at: 0 or 1 for the columns of that step in a frame of `two_steps`; None for a step's frame.
            Everything of the chosen side (its SFT term, its length, the pair's weight) comes from `chosen_at`.
        beta_at: the same for pairs' own beta; None: `chosen_at`.

    Raises:
        DiagError: a coupled loss, or a quantity that this loss needs is not recorded.
    """

    at = zip(needed_columns(spec), (chosen_at, rejected_at), strict=True)
    values = {
        name: column_of(pairs, name, beta_at if name == PAIR_BETA and beta_at is not None else when)
        for names, when in at
        for name in names
    }
    nothing = np.zeros(len(pairs))
    return pair_losses(
        spec,
        values.get("a", nothing),
        values.get("b", nothing),
        weight=values.get("chosen_weight"),
        **{field: values.get(column) for field, column in (_CHOSEN | _REJECTED).items()},
    )
