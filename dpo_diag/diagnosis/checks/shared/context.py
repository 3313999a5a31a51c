"""What a run knows, read once and lazily; every quantity is known, or `Missing` says why not.

Two sources answer most checks: `pairs` (per-pair sums of a fixed set, the same pairs at each step) and `logged` (means
only: of a fixed set, or of training batches, which differ at each step and are noisy).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ParamSpec, TypeVar

import pandas as pd

from dpo_diag.diagnosis.checks.shared.check import CHECKS, Missing
from dpo_diag.diagnosis.checks.shared.logged import Logged, Window
from dpo_diag.diagnosis.checks.shared.pairs import FixedPairs
from dpo_diag.diagnosis.checks.shared.plausible import Implausible, find_implausible
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, Step
from dpo_diag.diagnosis.scheduled import moved_coefficients
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, has_nll, loss_at_reference, loss_floor, start_of
from dpo_diag.records import Run
from dpo_diag.thresholds import Thresholds, defaults

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Start:
    """The loss of a policy that equals its reference: known from the loss's definition, or assumed, and why."""

    value: float
    floor: float | None
    known: bool
    reason: str


class CheckContext:
    """Everything that the checks read of one run. Build it with `from_run`."""

    def __init__(
        self,
        rows: PairRows,
        window: Window,
        split: str | None,
        start: Step | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._thresholds = defaults() if thresholds is None else thresholds
        self.run, self.info, self.window = rows.run, rows.run.info, window
        self.logged = Logged(self.run, window, split, self._is_withheld)
        self.pairs = FixedPairs(rows, window, split, start)
        self._findings: dict[tuple[str, tuple[tuple[str, float], ...]], dict[str, Any]] = {}
        self.start_step = start

    @classmethod
    def from_run(
        cls,
        run: Run | PairRows,
        from_step: Step | None = None,
        to_step: int | None = None,
        split: str | None = None,
        thresholds: Thresholds | None = None,
    ) -> CheckContext:
        """A context over the steps from_step..to_step (all by default).

        Args:
            run: a run, or its pair rows where they were read already.
            from_step: where pairs are compared from: a step, or REFERENCE; by default see `PairRows.start`.
            split: the fixed set to judge by; by default the one with the most measured steps, "eval" first.
            thresholds: by which logged numbers count as implausible; the defaults if None.

        Raises:
            DiagError: the run has no such split.
        """
        rows = run if isinstance(run, PairRows) else PairRows(run)
        measured = rows.steps if split is None else {split: rows.steps.get(split, [])}
        steps = sorted({step for of_split in measured.values() for step in of_split})
        # The first and last measured steps of a set are the whole run: its history is not cut to them.
        first = None if from_step is None or from_step == REFERENCE else int(from_step)
        if first is not None and (first <= 0 or (steps and first <= steps[0])):
            first = None
        if to_step is not None and steps and to_step >= steps[-1]:
            to_step = None
        context = cls(rows, Window(first, to_step), split, from_step, thresholds)
        if split is not None:
            known = sorted({*context.logged.rows["split"].unique(), *rows.steps})
            if split not in known:
                raise DiagError("no such split", where=rows.run.path, got=split, expected=f"one of {known}", usage=True)
        return context

    def maybe(self, quantity: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The quantity, or None where it is missing."""
        try:
            return quantity(*args, **kwargs)
        except Missing:
            return None

    def finding(self, code: str, thresholds: Thresholds) -> dict[str, Any]:
        """What a check says of this run, asked once: a check that depends on another one asks here."""
        key = code, tuple(sorted(thresholds.items()))
        if key not in self._findings:
            self._findings[key] = CHECKS[code].run(self, thresholds)
        return self._findings[key]

    def wrong_reference(self, thresholds: Thresholds) -> bool:
        """Whether the run did not start at its reference (DVG007), by mistake or because another one was named: its
        rewards are then 0 nowhere in particular."""
        finding = self.finding("DVG007", thresholds)
        return bool(
            finding["outcome"] == "speaks" and (finding["severity"] == "error" or "start" in finding["evidence"])
        )

    def known_start(self, thresholds: Thresholds) -> float | None:
        """The loss that the run started from before its first row: that of the reference, where the loss is known and
        nothing speaks against a start there (DVG007); None elsewhere, or where only later steps are looked at."""
        start, finding = self.start, self.finding("DVG007", thresholds)
        unsure = self.wrong_reference(thresholds) or finding["reason"].startswith("cannot tell")
        known = start.known and math.isfinite(start.value) and not self.reference_free
        return start.value if known and not unsure and self.window.first is None else None

    def rewards_from_zero(self, thresholds: Thresholds) -> bool:
        """Whether logged rewards began at 0: they are 0 at the reference, measured or not. A run with a wrong reference
        is measured from its own start, and so is a stretch of a run."""
        return self.window.first is None and not self.reference_free and not self.wrong_reference(thresholds)

    @cached_property
    def implausible(self) -> list[Implausible]:
        """Logged means that cannot be what their names say."""
        return find_implausible(self.logged, self.start, self._thresholds)

    @cached_property
    def moved_coefficients(self) -> list[str]:
        """Coefficients of the loss that a schedule moved: its logged values, of different losses, have no course."""
        return moved_coefficients(self.run)

    def _is_withheld(self, split: str, name: str) -> bool:
        if name == "loss" and self.moved_coefficients:
            return True
        return any(one.withholds(split, name) for one in self.implausible)

    def nothing_of(self, *metrics: str) -> Missing:
        """Why neither the pairs nor one of these logged means can be used: what is recorded of each."""
        try:
            self.pairs.change()
            pairs = "the pairs hold no finite log-probs"
        except Missing as why:
            pairs = str(why)
        splits = self.logged.splits
        logged = [m for m in metrics if any(self.logged.every(m, split) is not None for split in splits)]
        if not logged:
            others = ", ".join(metrics[:-1])
            return Missing(f"{pairs}, and neither {others} nor {metrics[-1]} is logged")
        reasons = []
        for metric in logged:
            if self.reference_free and metric.startswith("rewards/"):
                reasons.append(f"{metric} holds no reference")
            elif any(self._is_withheld(split, metric) for split in splits):
                reasons.append(f"{metric} cannot be used")
            else:
                reasons.append(f"{metric} is logged at too few steps")
        return Missing(f"{pairs}, and {', '.join(reasons)}")

    @property
    def reference_free(self) -> bool:
        """Whether the logged rewards are beta times the log-prob itself: no reference in them."""
        return bool(self.info.reference_free)

    @property
    def mean_logps(self) -> bool:
        """Whether logged logps may be means over a response's tokens instead of sums."""
        return self.info.logps != "sum"

    @cached_property
    def start(self) -> Start:
        """The loss at the reference and its floor; ln 2 is assumed, and said so, where the loss is unknown."""
        loss = self.info.loss
        if loss is not None:
            name = "+".join(loss.types)
            try:
                # An SFT term's value at the start is the data's, not the loss's.
                return Start(loss_at_reference(loss), loss_floor(loss), not has_nll(loss.types), f"loss {name}")
            except DiagError as error:
                return Start(math.nan, None, False, str(error))
        if self.reference_free:
            return Start(math.nan, None, False, "a loss without a reference has no fixed start")
        if (named := start_of(self.info.loss_names)) is not None:
            return Start(named[0], 0.0, named[1], f"loss {'+'.join(self.info.loss_names)}")
        if self.info.loss_like == "sigmoid":
            return Start(math.log(2), 0.0, True, "ln 2: loss and margins are those of the sigmoid loss")
        if like := self.info.loss_like:
            # Of the two only ipo's start depends on beta, and its own numbers gave that.
            spec = LossSpec(types=(like,), beta=self.info.beta) if self.info.beta else LossSpec(types=(like,))
            reason = f"loss and margins are those of {like}, inferred from the numbers (--loss NAME says which it is)"
            return Start(loss_at_reference(spec), loss_floor(spec), True, reason)
        return Start(math.log(2), 0.0, False, f"ln 2 assumed: {self.info.loss_reason or 'the loss is unknown'}")

    def answers(self) -> pd.DataFrame:
        """Checked policy answers, one row per (step, prompt_id, sample): correct in [0, 1], tags.

        Raises:
            Missing: there are none.
        """
        outputs = self.run.outputs
        checked = outputs[outputs["correct"].notna() & (outputs["model"] == "policy")]
        if checked.empty:
            raise Missing("no answers with a checker's verdict")
        return checked
