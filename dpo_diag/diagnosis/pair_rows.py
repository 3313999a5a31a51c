"""The pair rows of a run: every split is read once, and each step of it is one frame with one row per pair.

Columns of a step's frame (index: pair_id, ascending), for each side that the split records:

    {side}_sum_logp, {side}_n_tokens, ...   the policy's values (`VALUES`), float64, NaN where unknown
    {side}_ref, {side}_ref_n_tokens, ...    the reference's (`{side}_ref` is its sum_logp)
    {side}_loss_logp                        the log-prob that the loss uses: sum_logp, but under LD-DPO
    a, b                                    log-ratios to the reference that the loss sees (nats), chosen and rejected

`two_steps` puts two such frames beside each other, with `_0` and `_1` (a0, a1, b0, b1) behind the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, is_per_token, pair_losses
from dpo_diag.records import Run
from dpo_diag.records.schemas import SIDES
from dpo_diag.records.tables import REFERENCE_COLUMNS, join_reference
from dpo_diag.thresholds import load_thresholds

FloatArray = npt.NDArray[np.float64]
REFERENCE = "ref"
"""Instead of a step: the reference model itself."""
Step = int | str


def step_name(step: Step) -> str:
    """ "step 40", or "the reference"."""
    return "the reference" if step == REFERENCE else f"step {step}"


VALUES = ("sum_logp", "n_tokens", "n_bytes", "n_truncated", "top1", "entropy_sum", "greedy_logp_sum", "weight")
_KEY = ["step", "split", "role", "pair_id", "side"]
_OF_THE_TEXT = ("n_tokens", "n_bytes", "n_truncated", "weight")
"""Values that belong to the pair and its text, whichever model reads it."""
_KEPT_FRAMES = 8
"""Step frames held at a time: enough for the checks, which come back to the first and the last step."""


class PairRows:
    """The pair rows of one run, read when first asked for and kept.

    Args:
        tolerance: nats per response by which the policy may differ from its reference before any training (rounding);
            by default the threshold `reference_tolerance_nats`.
    """

    def __init__(self, run: Run, tolerance: float | None = None) -> None:
        self.run = run
        self._tolerance = tolerance
        self._splits: dict[str, pd.DataFrame] = {}
        self._duplicates: dict[str, Counter[Step]] = {}
        self._frames: dict[tuple[str, Step, tuple[str, ...]], pd.DataFrame] = {}

    @cached_property
    def steps(self) -> dict[str, list[int]]:
        """split -> ascending steps with policy rows, best split first; empty for a run without pair records."""
        keys = self.run.read("pairs", columns=["step", "split"], roles=["policy"]).drop_duplicates()
        steps = {str(s): sorted(int(x) for x in group["step"]) for s, group in keys.groupby("split")}
        best = self.run.preferred(steps)
        # A set measured once can only be compared with the reference: sets measured twice come first.
        once = [s for s in best if len(steps[s]) < 2 and self.run.role(s) != "train"]
        return {s: steps[s] for s in [*(s for s in best if s not in once), *once]}

    @cached_property
    def prompts(self) -> pd.Series | None:
        """pair_id -> number of its prompt (text, and what else the model is shown beside it), of the pairs whose prompt
        is recorded; None where no two of them share one. An empty prompt is none: nothing is shared there."""
        texts = self.run.read("texts", ["pair_id", "prompt", "beside"]).drop_duplicates("pair_id")
        known = texts[texts["prompt"].fillna("").str.strip() != ""].set_index("pair_id")
        if not known[["prompt", "beside"]].duplicated().any():
            return None
        return known.groupby(["prompt", "beside"], dropna=False).ngroup()

    def split(self, name: str) -> pd.DataFrame:
        """Every policy row of a split in the order of steps, with the reference's values as `ref_*` columns."""
        if name not in self._splits:
            raw = self.run.read("pairs", [*_KEY, *VALUES, "loss_logp"], splits=[name])
            twice = raw.loc[raw.duplicated(_KEY)]
            policy = Counter[Step](int(s) for s in twice.loc[twice["role"] == "policy", "step"])
            self._duplicates[name] = policy + Counter({REFERENCE: int((twice["role"] == "ref").sum())})
            rows = raw.drop_duplicates(_KEY, keep="last")
            base = self.run.info.reference.step
            if base is not None and not (rows["role"] == "ref").any():
                # The source says that the policy of one of its steps is the reference (a run scored from its start).
                rows = pd.concat([rows, rows.loc[rows["step"] == base].assign(role="ref")], ignore_index=True)
            self._splits[name] = join_reference(rows)
        return self._splits[name]

    def duplicates(self, split: str, *steps: Step) -> int:
        """Rows of these steps (REFERENCE: of the reference) that were written more than once."""
        self.split(split)
        return sum(self._duplicates[split][step] for step in steps)

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
        after = self.rows(split, to_step)
        known = after["ref_sum_logp"].notna()
        if not known.any():
            return first, None
        returning = after["pair_id"].isin(self.rows(split, first)["pair_id"])
        if known.sum() < returning.sum():
            scored, pairs = after.loc[known, "pair_id"].nunique(), after["pair_id"].nunique()
            return first, f"the reference was measured on {scored} of {pairs} pairs only, so step {first} is the start"
        if self.reference_gap is not None:
            return first, (
                f"the policy started {self.reference_gap:.3g} nats per response away from its reference, so its own "
                f"step {first} is the start, not the reference"
            )
        return REFERENCE, None

    def rows(self, split: str, step: int) -> pd.DataFrame:
        """A split's rows of one step, a row per pair and side."""
        rows = self.split(split)
        first, last = np.searchsorted(rows["step"].to_numpy(), [step, step + 1])
        return rows.iloc[first:last]

    def sides(self, split: str, step: int) -> tuple[str, ...]:
        """Sides with rows at a step: chosen and rejected, or chosen alone (SFT)."""
        present = set(self.rows(split, step)["side"].unique())
        return tuple(s for s in SIDES if s in present)

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
            frame = self.frame(self.rows(split, at), sides)
            self._frames[key] = self.as_reference(split, frame) if step == REFERENCE else frame
        return self._frames[key]

    def as_reference(self, split: str, frame: pd.DataFrame) -> pd.DataFrame:
        """A step's frame as the reference would have written it (see `as_reference`); what the reference's rows lack
        (entropies where its log-probs were precomputed) comes from the policy's step that is the reference."""
        reference, step = as_reference(frame), self.reference_step(split)
        if step is None or reference.empty:
            return reference
        sides = tuple(side for side in SIDES if f"{side}_ref" in reference)
        return reference.combine_first(self.at(split, step, sides).reindex(reference.index))[list(reference.columns)]

    def reference_step(self, split: str) -> int | None:
        """The step at which the policy is the reference: the declared one, or step 0 where both wrote the same numbers;
        None where that is not known of this split."""
        declared = self.run.info.reference.step
        if declared is not None:
            return declared if declared in self.steps[split] else None
        measured = len(self.at_start) > 0 and (self.at_start["split"] == split).any()
        return 0 if measured and self.reference_gap is None else None

    def frame(self, rows: pd.DataFrame, sides: tuple[str, ...]) -> pd.DataFrame:
        """Rows with one row per pair and side as a step's frame: pairs that have every one of `sides`."""
        names = {v: v for v in (*VALUES, "loss_logp")}
        names |= {f"ref_{v}": "ref" if v == "sum_logp" else f"ref_{v}" for v in REFERENCE_COLUMNS}
        parts = []
        for side in sides:
            part = rows.loc[rows["side"] == side].set_index("pair_id")[list(names)].astype("float64")
            parts.append(part.rename(columns={old: f"{side}_{new}" for old, new in names.items()}))
        frame = pd.concat(parts, axis=1, join="inner").sort_index() if parts else pd.DataFrame()
        if not self._uses_loss_logp:
            for side in sides:
                frame[f"{side}_loss_logp"] = frame[f"{side}_sum_logp"]
                frame[f"{side}_ref_loss_logp"] = frame[f"{side}_ref"]
        return _with_ratios(frame, sides)

    @property
    def _uses_loss_logp(self) -> bool:
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
    reference = frame.loc[frame[[f"{s}_ref" for s in sides]].notna().all(axis=1)].copy()
    for side in sides:
        for value in (*VALUES, "loss_logp"):
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
    both = before.index.intersection(after.index).sort_values()
    values = [c for c in after.columns if "_ref" not in c]
    parts = []
    for when, frame in ((0, before), (1, after)):
        part = frame.loc[both, values]
        parts.append(part.set_axis([column_at(c, when) for c in values], axis=1))
    references = after.loc[both, [c for c in after.columns if c.endswith("_ref")]]
    return pd.concat([*parts, references], axis=1).rename_axis("pair_id").reset_index()


def finite_at_both(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two frames over the pairs whose log-prob sums are finite at both steps, in one order."""
    both = before.index.intersection(after.index).sort_values()
    first, last = before.loc[both], after.loc[both]
    sums = [c for c in after.columns if c.endswith("_sum_logp") and "_ref" not in c]
    keep = np.isfinite(first[sums].to_numpy()).all(axis=1) & np.isfinite(last[sums].to_numpy()).all(axis=1)
    return first.loc[keep], last.loc[keep]


def needed_columns(spec: LossSpec) -> tuple[list[str], list[str]]:
    """Columns of a step's frame that a loss looks at, of the chosen and of the rejected side."""
    chosen, rejected = (["a"], ["b"]) if needs_reference(spec) else ([], [])
    if "sft" in spec.types:
        chosen.append("chosen_sum_logp")
    if spec.use_weighting:
        chosen.append("chosen_weight")
    by_length = is_per_token(spec.types)
    if by_length or "sft" in spec.types:
        chosen.append("chosen_n_tokens")
    if by_length:
        rejected.append("rejected_n_tokens")
    return chosen, rejected


def needs_reference(spec: LossSpec) -> bool:
    """Whether any term looks at the reference; SFT alone does not."""
    return any(kind != "sft" for kind in spec.types)


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
    spec: LossSpec, pairs: pd.DataFrame, chosen_at: int | None = None, rejected_at: int | None = None
) -> FloatArray:
    """Loss of each pair, shape (pairs,), from a step's frame or from `two_steps`.

    Args:
        chosen_at, rejected_at: 0 or 1 for the columns of that step in a frame of `two_steps`; None for a step's frame.
            Everything of the chosen side (its SFT term, its length, the pair's weight) comes from `chosen_at`.

    Raises:
        DiagError: a coupled loss, or a quantity that this loss needs is not recorded.
    """

    at = zip(needed_columns(spec), (chosen_at, rejected_at), strict=True)
    values = {name: column_of(pairs, name, when) for names, when in at for name in names}
    nothing = np.zeros(len(pairs))
    return pair_losses(
        spec,
        values.get("a", nothing),
        values.get("b", nothing),
        n_chosen=values.get("chosen_n_tokens"),
        n_rejected=values.get("rejected_n_tokens"),
        chosen_sum_logp=values.get("chosen_sum_logp"),
        weight=values.get("chosen_weight"),
    )
