"""What a run knows, read once and lazily; every quantity is known, or `Missing` says why not.

Two sources answer most checks: `pairs` of a fixed set (per-pair sums, the same pairs at each step) and `history` (means
only; of a fixed evaluation set, or of training batches that differ at each step, hence noisy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks.base import Missing
from dpo_diag.diagnosis.checks.series import FloatArray, Series, Start, is_training
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, loss_at_reference, loss_floor, pair_losses
from dpo_diag.records.metric_aliases import logged_names
from dpo_diag.records.metric_table import METRICS
from dpo_diag.records.reader import Run

T = TypeVar("T")

_SIDE_COLUMNS = {
    "sum_logp": "s", "n_tokens": "n", "n_bytes": "bytes", "n_truncated": "cut", "top1": "top1", "entropy_sum": "ent",
    "greedy_logp_sum": "greedy", "ref_sum_logp": "ref", "ref_n_tokens": "ref_n", "weight": "w", "loss_logp": "used",
}  # fmt: skip


REFERENCE_STEP = -1
"""Stands for the reference itself where a set was measured at one step only."""


class CheckContext:
    """Everything that the checks read of one run. Build it with `from_run`."""

    def __init__(self, run: Run, from_step: int | None, to_step: int | None, split: str | None) -> None:
        self.run = run
        self.info = run.info
        self.from_step, self.to_step, self.wanted_split = from_step, to_step, split
        self._paired: dict[tuple[str, int], pd.DataFrame] = {}

    @classmethod
    def from_run(
        cls, run: Run, from_step: int | None = None, to_step: int | None = None, split: str | None = None
    ) -> CheckContext:
        """A context over the steps from_step..to_step (all by default).

        Args:
            split: the fixed set to judge by; by default the one with the most measured steps, "eval" first.

        Raises:
            DiagError: the run has no such split.
        """
        context = cls(run, from_step, to_step, split)
        if from_step is not None or to_step is not None:
            # The first and last measured steps of a set are the whole run: its history is not cut to them.
            steps = run.pairs.loc[run.pairs["split"] == split, "step"] if split is not None else run.pairs["step"]
            if from_step is not None and (from_step <= 0 or (len(steps) and from_step <= steps.min())):
                context.from_step = None
            if to_step is not None and len(steps) and to_step >= steps.max():
                context.to_step = None
        if split is not None:
            known = sorted({*context.history["split"].unique(), *context.pairs["split"].unique()})
            if split not in known:
                raise DiagError("no such split", where=run.path, got=split, expected=f"one of {known}", usage=True)
        return context

    def maybe(self, thunk: Callable[[], T]) -> T | None:
        """The quantity, or None where it is missing."""
        try:
            return thunk()
        except Missing:
            return None

    # --- the loss -------------------------------------------------------------------------------------------------

    @cached_property
    def _spec(self) -> LossSpec | str:
        return self.info.loss or self.info.loss_reason or "the run does not say which loss it used"

    def spec(self) -> LossSpec:
        """The loss's definition."""
        if isinstance(self._spec, str):
            raise Missing(self._spec)
        return self._spec

    @property
    def reference_free(self) -> bool:
        """Whether the logged rewards are beta times the log-prob itself (ORPO, SimPO, CPO): no reference in them."""
        return bool(self.info.reference_free)

    @cached_property
    def start(self) -> Start:
        """The loss at the reference and the loss's floor; ln 2 is assumed, and said so, where the loss is unknown."""
        if isinstance(self._spec, LossSpec):
            try:
                value = loss_at_reference(self._spec)
                known = "sft" not in self._spec.types
                return Start(value, loss_floor(self._spec), known, f"loss {'+'.join(self._spec.types)}")
            except DiagError as error:
                return Start(math.nan, None, False, str(error))
        if self.reference_free:
            return Start(math.nan, None, False, "a loss without a reference has no fixed start")
        if self.info.loss_like == "sigmoid":
            return Start(math.log(2), 0.0, True, "ln 2: loss and margins are those of the sigmoid loss")
        return Start(math.log(2), 0.0, False, f"ln 2 assumed: {self._spec}")

    @property
    def beta(self) -> float | None:
        """The loss's beta: named by the source, or inferred when the run was written."""
        return self.info.beta

    # --- history --------------------------------------------------------------------------------------------------

    @cached_property
    def history(self) -> pd.DataFrame:
        """Rows of history inside the window; a null value (not measured) is left out, NaN (measured, NaN) stays."""
        table = self.run.arrow("history")
        measured = table.filter(table.column("value").is_valid()).to_pandas()
        for column in ("split", "name"):
            measured[column] = measured[column].astype(str)
        measured = measured.drop_duplicates(["step", "split", "name"], keep="last")
        low = -math.inf if self.from_step is None else self.from_step
        high = math.inf if self.to_step is None else self.to_step
        kept = measured[(measured["step"] >= low) & (measured["step"] <= high)]
        frame: pd.DataFrame = kept.sort_values(["split", "name", "step"], kind="stable", ignore_index=True)
        return frame

    @cached_property
    def splits(self) -> list[str]:
        """Splits of the history, those with most rows first."""
        return [str(s) for s in self.history["split"].value_counts().index]

    @cached_property
    def fixed_splits(self) -> list[str]:
        """Splits of fixed sets, the wanted one first, then "eval", then the rest by number of steps."""
        steps = self.history.groupby("split")["step"].nunique()
        named = [str(s) for s in steps.sort_values(ascending=False, kind="stable").index if not is_training(str(s))]
        return sorted(named, key=lambda s: (s != self.wanted_split, s != "eval", not s.startswith("eval")))

    @cached_property
    def train_splits(self) -> list[str]:
        return [s for s in self.splits if is_training(s)]

    def series(self, metric: str, split: str, least: int = 1) -> Series:
        """A metric of a split, by its TRL name or any of its aliases.

        Raises:
            Missing: fewer than `least` rows.
        """
        rows = self.history[self.history["split"] == split]
        stand_ins = METRICS[metric].stand_ins if metric in METRICS else ()
        for name in (*logged_names(metric), *stand_ins):
            found = rows[rows["name"] == name]
            if len(found) >= least:
                return Series(
                    name,
                    split,
                    found["step"].to_numpy(dtype=np.float64),
                    found["value"].to_numpy(dtype=np.float64),
                    found["weight"].to_numpy(dtype=np.float64),
                    not is_training(split),
                )
        raise Missing(f"{metric} is not logged in {split}" + (f" at {least} steps or more" if least > 1 else ""))

    def find(self, metric: str, split: str) -> Series | None:
        """The finite values of a metric of a split, or None where there are none."""
        found = self.maybe(lambda: self.series(metric, split).finite)
        return found if found is not None and len(found) else None

    def fixed_series(self, metric: str, least: int = 2) -> Series:
        """A metric of the first fixed set that has it at `least` finite steps."""
        for split in self.fixed_splits:
            found = self.find(metric, split)
            if found is not None and len(found) >= least:
                return found
        raise Missing(f"no fixed evaluation set logs {metric} at {least} steps or more")

    def train_series(self, metric: str, least: int = 6) -> Series:
        """A metric of the training batches at `least` finite steps."""
        for split in self.train_splits:
            found = self.find(metric, split)
            if found is not None and len(found) >= least:
                return found
        raise Missing(f"{metric} of the training batches is not logged at {least} steps or more")

    def wide_rows(self, metrics: Sequence[str], split: str | None = None) -> pd.DataFrame | None:
        """One column a metric, one row a step at which all are finite; None where a metric is missing."""
        for candidate in [split] if split else [*self.fixed_splits, *self.train_splits]:
            found = [self.find(m, candidate) for m in metrics]
            columns = {m: pd.Series(s.values, index=s.steps) for m, s in zip(metrics, found, strict=True) if s}
            if len(columns) < len(metrics):
                continue
            frame = pd.DataFrame(columns).replace([math.inf, -math.inf], np.nan).dropna()
            if len(frame):
                return frame
        return None

    @property
    def mean_logps(self) -> bool:
        """Whether logged logps may be means per token instead of sums per response."""
        return self.info.logps != "sum"

    # --- pairs of a fixed set ---------------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> pd.DataFrame:
        frame = self.run.pairs
        low = -math.inf if self.from_step is None else self.from_step
        high = math.inf if self.to_step is None else self.to_step
        return frame[(frame["step"] >= low) & (frame["step"] <= high)]

    @cached_property
    def _pair_splits(self) -> list[str]:
        """Splits that are fixed sets: their first and last measured steps share pairs."""
        candidates = []
        for split, rows in self.pairs.groupby("split"):
            steps = np.sort(rows["step"].unique())
            first = set(rows.loc[rows["step"] == steps[0], "pair_id"])
            last = set(rows.loc[rows["step"] == steps[-1], "pair_id"])
            against_reference = len(steps) == 1 and not is_training(str(split)) and rows["ref_sum_logp"].notna().all()
            repeated = len(steps) >= 2 and len(first & last) >= 0.5 * min(len(first), len(last))
            if repeated or against_reference:
                candidates.append((str(split) != self.wanted_split, str(split) != "eval", -len(steps), str(split)))
        return [c[-1] for c in sorted(candidates)]

    def pair_split(self) -> str:
        """The fixed set with pair records at two steps or more."""
        if self.pairs.empty:
            raise Missing("the run holds no per-pair records (means only, or none)")
        if not self._pair_splits:
            raise Missing("no fixed set was measured at two steps or more")
        if self.wanted_split is not None and self.wanted_split not in self._pair_splits:
            raise Missing(f"{self.wanted_split} holds no pairs measured at two steps or more")
        return self._pair_splits[0]

    def pair_steps(self, split: str | None = None) -> list[int]:
        """Measured steps of a fixed set, ascending; REFERENCE_STEP first where it was measured only once."""
        chosen = split or self.pair_split()
        steps = [int(s) for s in np.sort(self.pairs.loc[self.pairs["split"] == chosen, "step"].unique())]
        return steps if len(steps) > 1 else [REFERENCE_STEP, *steps]

    def at(self, step: int, split: str | None = None) -> pd.DataFrame:
        """One row per pair of a set at a step, index pair_id; columns s_c, s_r (sums, nats), n_c, n_r (tokens, or
        bytes where tokens are unknown), bytes_*, cut_*, top1_*, ent_*, greedy_*, ref_*, ref_n_*, w_*, used_*."""
        chosen = split or self.pair_split()
        if step == REFERENCE_STEP:
            after = self.at(self.pair_steps(chosen)[-1], chosen)
            unknown = [c for c in after.columns if c.split("_")[0] in ("top1", "ent", "greedy", "used", "w")]
            before = after.assign(s_c=after["ref_c"], s_r=after["ref_r"])
            before[unknown] = np.nan
            return before
        if (chosen, step) not in self._paired:
            rows = self.pairs[(self.pairs["split"] == chosen) & (self.pairs["step"] == step)]
            sides = []
            for side, letter in (("chosen", "c"), ("rejected", "r")):
                part = rows[rows["side"] == side].set_index("pair_id")[list(_SIDE_COLUMNS)]
                sides.append(part.rename(columns={k: f"{v}_{letter}" for k, v in _SIDE_COLUMNS.items()}))
            frame = sides[0].join(sides[1], how="inner").astype(np.float64)
            for letter in ("c", "r"):
                if frame[f"n_{letter}"].isna().all():
                    frame[f"n_{letter}"] = frame[f"bytes_{letter}"]
            self._paired[chosen, step] = frame
        return self._paired[chosen, step]

    def change(
        self, first: int | None = None, last: int | None = None, split: str | None = None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The same pairs at two steps (by default the first and the last), rows aligned, non-finite sums left out."""
        steps = self.pair_steps(split)
        before, after = (
            self.at(steps[0] if first is None else first, split),
            self.at(steps[-1] if last is None else last, split),
        )
        common = before.index.intersection(after.index)
        b, a = before.reindex(common), after.reindex(common)
        sums = np.hstack([b[["s_c", "s_r"]].to_numpy(), a[["s_c", "s_r"]].to_numpy()])
        keep = np.flatnonzero(np.isfinite(sums).all(axis=1))
        if keep.size < 3:
            raise Missing("fewer than three pairs are finite at both steps")
        return b.iloc[keep], a.iloc[keep]

    def counted(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame, if its responses' lengths are known."""
        if frame[["n_c", "n_r"]].isna().to_numpy().any() or (frame[["n_c", "n_r"]] <= 0).to_numpy().any():
            raise Missing("neither token nor byte counts of the responses are recorded")
        return frame

    def ratios(self, frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
        """Log-ratios a, b (nats) of chosen and rejected to the reference; without reference rows, to the first step."""
        if frame[["ref_c", "ref_r"]].notna().to_numpy().all():
            return (frame["s_c"] - frame["ref_c"]).to_numpy(), (frame["s_r"] - frame["ref_r"]).to_numpy()
        first = self.at(self.pair_steps()[0]).reindex(frame.index)
        return (frame["s_c"] - first["s_c"]).to_numpy(), (frame["s_r"] - first["s_r"]).to_numpy()

    @property
    def pair_loss_is(self) -> str:
        """What `pair_loss` computes, for the evidence."""
        if isinstance(self._spec, LossSpec) and not self._spec.not_additive:
            return "+".join(self._spec.types)
        return f"sigmoid at beta {self.beta or 0.1:g} in place of the run's loss"

    def pair_loss(self, frame: pd.DataFrame) -> FloatArray:
        """Loss of each pair; the sigmoid loss at beta 0.1 stands in where the run does not name an additive loss."""
        spec = self._spec if isinstance(self._spec, LossSpec) and not self._spec.not_additive else None
        spec = spec or LossSpec(beta=self.beta or 0.1)
        a, b = self.ratios(frame)
        try:
            return pair_losses(
                spec,
                a,
                b,
                n_chosen=frame["n_c"],
                n_rejected=frame["n_r"],
                chosen_sum_logp=frame["s_c"],
                weight=frame["w_c"] if frame["w_c"].notna().all() else np.ones(len(frame)),
            )
        except DiagError:
            return pair_losses(LossSpec(beta=spec.beta), a, b)

    # --- scores and outputs -----------------------------------------------------------------------------------------

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Task scores of the history: columns score, split, step, value, weight (n; NaN if unknown)."""
        rows = self.history[self.history["name"].str.startswith("score/")]
        return rows.assign(score=rows["name"].str.removeprefix("score/"))[["score", "split", "step", "value", "weight"]]

    def score_curves(self, least: int = 2) -> list[tuple[str, str, pd.DataFrame]]:
        """(score, split, rows in step order) of every score measured at `least` steps with its n."""
        curves = []
        for (score, split), rows in self.scores.groupby(["score", "split"]):
            known = rows[np.isfinite(rows["value"]) & (rows["weight"] > 0)].sort_values("step")
            if len(known) >= least:
                curves.append((str(score), str(split), known))
        return curves

    def answers(self) -> pd.DataFrame:
        """Checked policy answers, one row per (step, prompt_id, sample): correct in [0, 1], tags."""
        outputs = self.run.outputs
        known = outputs[outputs["correct"].notna() & (outputs["model"] == "policy")]
        if known.empty:
            raise Missing("no answers with a checker's verdict")
        return known

    def loss_of(self, kind: Literal["fixed", "train"]) -> Series:
        return self.fixed_series("loss") if kind == "fixed" else self.train_series("loss")
