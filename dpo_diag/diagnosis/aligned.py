"""Which rows an explanation compares: the split, the two steps, and the pairs that stand at both.

A fixed evaluation set comes before anything else: only there do the same pairs return at every step. Pairs that stand
at one of the two steps only are counted and named in `coverage`, never dropped in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.records import Run
from dpo_diag.records.reader import join_reference
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES, TRAIN_SPLIT

REFERENCE = "ref"
"""Instead of a step: the reference model itself."""
Step = int | str

VALUES = ("sum_logp", "n_tokens", "n_bytes", "n_truncated", "top1", "top5", "entropy_sum", "greedy_logp_sum", "weight")
_JOINED = ("sum_logp", "n_tokens", "entropy_sum", "greedy_logp_sum", "top1")
TRAIN_WINDOW_PAIRS = 64
"""Training batches hold other pairs at every step; explained against the reference, the newest this many are taken."""


@dataclass(frozen=True)
class Selection:
    """What is compared with what.

    Attributes:
        split: the set; rows of other splits are not touched.
        from_step, to_step: optimizer steps; `from_step` may be REFERENCE.
        steps: all steps at which the split has policy rows, ascending.
        pairs: one row per pair that stands at both steps, ordered by pair_id, with columns `{side}_{value}_{0|1}`
            (0 = from, 1 = to) for the sides that the records hold, `{side}_ref` (reference sum_logp, NaN if unknown),
            and `a0, b0, a1, b1`: log-ratios to the reference that the loss sees (nats; NaN without a reference).
        sides: sides with rows: chosen and rejected, or chosen alone (SFT).
        coverage: counts of what was left out, and why.
        notes: sentences a reader must know, e.g. that training batches were compared with the reference.
    """

    split: str
    from_step: Step
    to_step: int
    steps: list[int]
    pairs: pd.DataFrame
    sides: tuple[str, ...]
    coverage: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def has_reference(self) -> bool:
        """Whether every aligned pair has the reference's log-probs."""
        return bool(len(self.pairs)) and not bool(self.pairs[["a1", "b1"]].isna().any(axis=None))


def split_order(splits: list[str]) -> list[str]:
    """Splits by preference: `eval`, other evaluation sets, anything else, training batches last."""

    def rank(name: str) -> tuple[int, str]:
        if name == EVAL_SPLIT:
            return 0, name
        if re.match(r"(eval|valid|test|held)", name):
            return 1, name
        return (3 if name == TRAIN_SPLIT or name.startswith("train") else 2), name

    return sorted(splits, key=rank)


def pair_splits(run: Run) -> dict[str, list[int]]:
    """split -> ascending steps with policy rows, best split first; empty for a run without pair records."""
    keys = run.read("pairs", columns=["step", "split"], roles=["policy"]).drop_duplicates()
    found = {str(s): sorted(int(x) for x in group["step"]) for s, group in keys.groupby("split")}
    best = split_order(list(found))
    # A set that was measured once can only be held against the reference: sets measured twice come first.
    return {s: found[s] for s in sorted(best, key=lambda s: (len(found[s]) < 2 and s != TRAIN_SPLIT, best.index(s)))}


def select(run: Run, from_step: Step | None = None, to_step: int | None = None, split: str | None = None) -> Selection:
    """Choose split and steps, and align the pairs.

    Args:
        from_step: default the first step of the split; REFERENCE compares the reference with `to_step`.
        to_step: default the last step of the split.
        split: default the first of `pair_splits`.

    Raises:
        DiagError: no pair records, an unknown split or step, steps in the wrong order.
    """
    available = pair_splits(run)
    if not available:
        raise DiagError("the run holds no pair records", where=run.name, hint="score its checkpoints with dpo-score")
    if split is None:
        split = next(iter(available))
    if split not in available:
        raise DiagError("no such split", got=split, expected=f"one of {list(available)}", usage=True)
    steps = available[split]
    to_step = steps[-1] if to_step is None else _known(to_step, steps, "--to")
    if from_step is None:
        from_step = steps[0] if steps[0] < to_step else REFERENCE
    elif from_step != REFERENCE:
        from_step = _known(from_step, steps, "--from")
        if from_step >= to_step:
            raise DiagError("--from must lie before --to", got=f"{from_step} and {to_step}", usage=True)
    raw = _raw(run, split, from_step, to_step)
    selection = _align(run, raw, split, from_step, to_step, steps)
    if len(selection.pairs) or split != TRAIN_SPLIT or from_step == REFERENCE:
        return selection
    return _training_window(run, split, to_step, steps)


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


def _raw(run: Run, split: str, from_step: Step, to_step: int) -> pd.DataFrame:
    """Policy rows of the two steps and the reference rows of the split, wherever they were written."""
    steps = [to_step] if from_step == REFERENCE else [int(from_step), to_step]
    policy = run.read("pairs", steps=steps, splits=[split], roles=["policy"])
    reference = run.read("pairs", splits=[split], roles=["ref"])
    base = (run.meta.get("reference") or {}).get("step") if isinstance(run.meta.get("reference"), dict) else None
    if reference.empty and base is not None:
        # The source says that the policy of one of its steps is the reference (a run scored from its start).
        reference = run.read("pairs", steps=[int(base)], splits=[split], roles=["policy"]).assign(role="ref")
    return pd.concat([f for f in (policy, reference) if len(f)], ignore_index=True) if len(policy) else policy


def _align(run: Run, raw: pd.DataFrame, split: str, from_step: Step, to_step: int, steps: list[int]) -> Selection:
    key = ["step", "split", "role", "pair_id", "side"]
    duplicates = int(raw.duplicated(key).sum())
    joined = join_reference(raw.drop_duplicates(key, keep="last"))
    after = joined.loc[joined["step"] == to_step]
    before = _as_reference(after) if from_step == REFERENCE else joined.loc[joined["step"] == from_step]
    sides = tuple(s for s in SIDES if (after["side"] == s).any())
    wide = [_wide(before, sides, 0), _wide(after, sides, 1)]
    both = wide[0].index.intersection(wide[1].index).sort_values()
    coverage = {
        "aligned": len(both),
        "only_from": int((~wide[0].index.isin(both)).sum()),
        "only_to": int((~wide[1].index.isin(both)).sum()),
        "one_side_only": int(_lone_sides(after, sides) + _lone_sides(before, sides)),
        "duplicate_rows": duplicates,
    }
    pairs = pd.concat([w.loc[both] for w in wide], axis=1)
    for side in sides:
        reference = after.loc[after["side"] == side].set_index("pair_id")["ref_sum_logp"]
        pairs[f"{side}_ref"] = reference.reindex(both).astype("float64")
    _log_ratios(pairs, joined, before, after, sides, bool((run.meta.get("loss") or {}).get("ld_alpha")))
    pairs = pairs.rename_axis("pair_id").reset_index()
    notes = []
    left = coverage["only_from"] + coverage["only_to"]
    if left:
        notes.append(f"{left} pairs stand at one of the two steps only and are left out")
    return Selection(split, from_step, to_step, steps, pairs, sides, coverage, notes)


def _as_reference(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows as the reference would have written them; what it was not measured for is null."""
    reference = rows.loc[rows["ref_sum_logp"].notna()].copy()
    for name in VALUES:
        if name in _JOINED:
            values = reference[f"ref_{name}"]
            # Counts are the text's, not the model's: where the reference row lacks them, the policy's hold.
            reference[name] = values.where(values.notna(), reference[name]) if name == "n_tokens" else values
        elif name not in ("n_bytes", "n_truncated", "weight"):
            reference[name] = np.nan
    reference["loss_logp"] = reference["ref_loss_logp"]
    return reference


def _wide(rows: pd.DataFrame, sides: tuple[str, ...], when: int) -> pd.DataFrame:
    """One row per pair with every side that the set has; pairs that miss a side are left out (and counted apart)."""
    parts = []
    for side in sides:
        part = rows.loc[rows["side"] == side].set_index("pair_id")[list(VALUES)].astype("float64")
        parts.append(part.rename(columns={v: f"{side}_{v}_{when}" for v in VALUES}))
    if not parts:
        return pd.DataFrame()
    return pd.concat(parts, axis=1, join="inner")


def _lone_sides(rows: pd.DataFrame, sides: tuple[str, ...]) -> int:
    return int((rows.groupby("pair_id")["side"].nunique() < len(sides)).sum())


def _log_ratios(
    pairs: pd.DataFrame,
    joined: pd.DataFrame,
    before: pd.DataFrame,
    after: pd.DataFrame,
    sides: tuple[str, ...],
    uses_loss_logp: bool,
) -> None:
    """a0, b0, a1, b1: log-prob minus the reference's; under ld_alpha of the log-probs that the loss used."""
    for side, letter in (("chosen", "a"), ("rejected", "b")):
        for when, rows in ((0, before), (1, after)):
            if side not in sides:
                pairs[f"{letter}{when}"] = np.nan
                continue
            own = rows.loc[rows["side"] == side].set_index("pair_id")
            names = ("loss_logp", "ref_loss_logp") if uses_loss_logp else ("sum_logp", "ref_sum_logp")
            ratio = own[names[0]].astype("float64") - own[names[1]].astype("float64")
            pairs[f"{letter}{when}"] = ratio.reindex(pairs.index)


def _training_window(run: Run, split: str, to_step: int, steps: list[int]) -> Selection:
    """Training batches never repeat a pair: hold the newest pairs, each at its own step, against the reference."""
    rows, taken = [], 0
    used: list[int] = []
    for step in reversed([s for s in steps if s <= to_step]):
        batch = run.read("pairs", steps=[step], splits=[split])
        rows.append(batch)
        used.append(step)
        taken += int(batch.loc[batch["role"] == "policy", "pair_id"].nunique())
        if taken >= TRAIN_WINDOW_PAIRS:
            break
    raw = pd.concat(rows, ignore_index=True)
    policy = raw.loc[raw["role"] == "policy"].sort_values("step", kind="stable")
    policy = policy.drop_duplicates(["pair_id", "side"], keep="last").assign(step=to_step)
    reference = run.read("pairs", splits=[split], roles=["ref"])
    selection = _align(run, pd.concat([policy, reference], ignore_index=True), split, REFERENCE, to_step, steps)
    selection.notes.append(
        f"training batches hold other pairs at every step, so {len(selection.pairs)} pairs of steps "
        f"{min(used)} to {max(used)} are held against the reference"
    )
    return selection
