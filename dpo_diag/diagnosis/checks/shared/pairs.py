"""The pairs of a fixed set at its steps: which set is judged, and what its pairs' losses are."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.checks.shared.check import Missing
from dpo_diag.diagnosis.checks.shared.logged import Window
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, Step, finite_at_both, pair_loss
from dpo_diag.diagnosis.scheduled import loss_at
from dpo_diag.diagnosis.unfinished import unfinished
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES
from dpo_diag.stats import LEAST_FOR_T, FloatArray
from dpo_diag.thresholds import Thresholds

STAND_IN_BETA = 0.1
SUMS = [f"{side}_sum_logp" for side in SIDES]
_COUNTS = [f"{side}_n_tokens" for side in SIDES]


class FixedPairs:
    """The pair rows of a run inside a window.

    Args:
        wanted: the fixed set to look at; None for the best one.
        start: where comparisons begin; None for what `PairRows.start` says of the set.
    """

    def __init__(self, rows: PairRows, window: Window, wanted: str | None, start: Step | None = None) -> None:
        self._pairs, self._info, self._window, self._wanted = rows, rows.run.info, window, wanted
        self._start = start

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Policy rows of all splits, one per (step, split, pair_id, side), the reference's values as `ref_*`."""
        return self._window.of(self._pairs.all)

    @property
    def at_start(self) -> pd.DataFrame:
        """Policy rows from before any training with their `gap` to the reference (see `PairRows.at_start`)."""
        return self._window.of(self._pairs.at_start)

    @cached_property
    def _fixed(self) -> list[str]:
        """Splits that are fixed sets, best first: their first and last measured steps share pairs."""
        candidates = []
        for split, rows in self.rows.groupby("split", observed=True):
            steps = np.sort(rows["step"].unique())
            first, last = (set(rows.loc[rows["step"] == s, "pair_id"]) for s in (steps[0], steps[-1]))
            # Half: pairs are added or dropped between evaluations, training batches share none.
            repeated = len(steps) >= 2 and len(first & last) >= 0.5 * min(len(first), len(last))
            training = self._info.role(str(split)) == "train"
            against_reference = len(steps) == 1 and not training and rows["ref_sum_logp"].notna().all()
            if repeated or (against_reference and not self._has_just_begun(rows)):
                candidates.append((str(split) != self._wanted, str(split) != EVAL_SPLIT, -len(steps), str(split)))
        return [c[-1] for c in sorted(candidates)]

    def _has_just_begun(self, rows: pd.DataFrame) -> bool:
        """Whether the one step of a set is of a policy that still is its reference: before a training's first step, or
        of the first checkpoint where more are to come."""
        if self._info.kind == "trained" and rows["step"].iloc[0] == 0:
            return True
        return bool((rows["sum_logp"] == rows["ref_sum_logp"]).all()) and unfinished(self._pairs.run) is not None

    @property
    def split(self) -> str:
        """The fixed set with pair records at two steps or more, or at one step beside its reference.

        Raises:
            Missing: there is none.
        """
        if self.rows.empty:
            raise Missing("the run holds no per-pair records (means only, or none)")
        if not self._fixed:
            raise Missing("no fixed set was measured at two steps or more")
        if self._wanted is not None and self._wanted not in self._fixed:
            raise Missing(f"{self._wanted} holds no pairs measured at two steps or more")
        return self._fixed[0]

    @cached_property
    def own_steps(self) -> list[int]:
        """Steps at which the policy was measured on the set, ascending."""
        return sorted(int(s) for s in self.rows.loc[self.rows["split"] == self.split, "step"].unique())

    @cached_property
    def steps(self) -> list[Step]:
        """What is compared, in order: REFERENCE first where the comparison begins there, then the policy's steps. The
        step at which the policy still is the reference does not count twice."""
        own = self.own_steps
        start = self._pairs.start(self.split, own[-1])[0] if self._start is None else self._start
        if start == REFERENCE and self.rows.loc[self.rows["step"] == own[-1], "ref_sum_logp"].notna().any():
            same = self._pairs.reference_step(self.split)
            return [REFERENCE, *(step for step in own if step != same or len(own) == 1)]
        return [step for step in own if start == REFERENCE or step >= int(start)]

    @property
    def from_reference(self) -> bool:
        """Whether comparisons begin at the reference."""
        return self.steps[0] == REFERENCE

    def at(self, step: Step) -> pd.DataFrame:
        """The set's frame at a step, with both sides (see `diagnosis.pair_rows`); where no token of a side was counted
        its bytes stand in."""
        frame = self._pairs.at(self.split, step, SIDES)
        uncounted = [side for side in SIDES if np.isnan(frame[f"{side}_n_tokens"].to_numpy()).all()]
        return (
            frame.assign(**{f"{side}_n_tokens": frame[f"{side}_n_bytes"] for side in uncounted}) if uncounted else frame
        )

    @cached_property
    def chosen_along(self) -> tuple[pd.Index[str], FloatArray]:
        """(the pairs whose sums are finite at every step, ascending; their chosen sums, (steps, pairs))."""
        pairs, sums = None, []
        for step in self.steps:
            frame = self.at(step)
            finite = pd.Series(frame["chosen_sum_logp"].to_numpy()[keep := finite_sums(frame)], frame.index[keep])
            pairs = finite.index if pairs is None or pairs.equals(finite.index) else pairs.intersection(finite.index)
            sums.append(finite)
        if pairs is None:
            return pd.Index([], dtype="str"), np.zeros((0, 0))
        return pairs, np.array([of.to_numpy() if of.index.equals(pairs) else of.loc[pairs].to_numpy() for of in sums])

    def change(self, first: Step | None = None, last: Step | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The same pairs at two steps (by default the first and the last), rows aligned, sums finite.

        Raises:
            Missing: fewer than three such pairs.
        """
        steps = self.steps
        frames = finite_at_both(
            self.at(steps[0] if first is None else first), self.at(steps[-1] if last is None else last)
        )
        if len(frames[0]) < LEAST_FOR_T:
            raise Missing("fewer than three pairs are finite at both steps")
        return frames

    def counted_change(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """`change`, of responses whose lengths are known.

        Raises:
            Missing: they are not.
        """
        change = self.change()
        # `not > 0` also catches counts that are null.
        if not all((frame[_COUNTS] > 0).to_numpy().all() for frame in change):
            raise Missing("neither token nor byte counts of the responses are recorded")
        return change

    def intervals(self, t: Thresholds) -> PairIntervals:
        """How intervals over the pairs are made: as everywhere else."""
        return PairIntervals.of(self._pairs, t)

    def moved(self, before: pd.DataFrame, after: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
        """Changes of the chosen and the rejected log-probs between two frames of `change` (nats), shape (pairs,)."""
        chosen, rejected = (after[SUMS] - before[SUMS]).to_numpy().T
        return chosen, rejected

    def has_reference(self, frame: pd.DataFrame) -> bool:
        """Whether the reference's sums of all pairs of the frame are recorded."""
        return not any(np.isnan(frame[f"{side}_ref"].to_numpy()).any() for side in SIDES)

    def ratios(self, frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
        """Log-ratios a, b (nats) of chosen and rejected to the reference; without reference rows, to the first step."""
        sums = [frame[name].to_numpy() for name in SUMS]
        if self.has_reference(frame):
            base = [frame[f"{side}_ref"].to_numpy() for side in SIDES]
        else:
            start = self.at(self.steps[0]).reindex(frame.index)
            base = [start[name].to_numpy() for name in SUMS]
        return sums[0] - base[0], sums[1] - base[1]

    def since_start(self, frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
        """Like `ratios`, but to the policy's own first step where the reference is not what it started from."""
        if self._pairs.reference_gap is None:
            return self.ratios(frame)
        return self.moved(self.at(self.own_steps[0]).reindex(frame.index), frame)

    @cached_property
    def _spec(self) -> LossSpec | None:
        """One yardstick for every step: the coefficients of the last one."""
        loss = self._info.loss
        if loss is None or loss.not_additive:
            return None
        return loss_at(self._pairs.run, loss, self.steps[-1], self.split)

    @property
    def _stand_in(self) -> LossSpec:
        return LossSpec(beta=self._info.beta or STAND_IN_BETA)

    @property
    def loss_name(self) -> str:
        """What `losses` computes, for the evidence."""
        if self._spec is not None:
            return "+".join(self._spec.types)
        return f"sigmoid at beta {self._stand_in.beta:g} in place of the run's loss"

    def losses(self, frame: pd.DataFrame) -> FloatArray:
        """Loss of each pair, shape (pairs,); the sigmoid loss stands in where the run names no loss with one."""
        a, b = self.ratios(frame)
        if not self.has_reference(frame):
            frame = frame.assign(a=a, b=b)
        try:
            return pair_loss(self._spec or self._stand_in, frame)
        except DiagError:
            return pair_losses(self._stand_in, a, b)


def finite_sums(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which pairs have finite sums on both sides, shape (pairs,)."""
    finite: npt.NDArray[np.bool_] = np.logical_and(*(np.isfinite(frame[name].to_numpy()) for name in SUMS))
    return finite
