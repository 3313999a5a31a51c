"""Coefficients of the loss that move over the training: by a line, by a cosine, or steered by what is measured.

A coefficient changes between two log calls and never inside a logged window, so that every logged and every evaluated
loss has one value of it, which stands beside it in the log (`coefficient/NAME`). A resumed training reads it there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_diag.config import Config
from dpo_diag.records.metric_table import COEFFICIENT
from dpo_diag.training.callbacks import BoundCallback


@dataclass(frozen=True)
class Path:
    """From `start` to `end` over the first `over` of all steps, and constant behind: linear or cosine."""

    start: float
    end: float
    over: float = 1.0
    shape: str = "linear"

    def at(self, step: int, steps: int) -> float:
        """The value for the steps behind `step`, of `steps` in all.

        >>> [Path(1.0, 3.0).at(step, 4) for step in range(5)]
        [1.0, 1.5, 2.0, 2.5, 3.0]
        >>> [round(Path(1.0, 3.0, over=0.5, shape="cosine").at(step, 8), 3) for step in (0, 1, 2, 4, 8)]
        [1.0, 1.293, 2.0, 3.0, 3.0]
        """
        done = min(step / (self.over * steps), 1.0) if steps > 0 else 1.0
        if self.shape == "cosine":
            done = (1.0 - math.cos(math.pi * done)) / 2.0
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class Steering:
    """Holds a measured number at or below `bound`: multiplies the coefficient by `raise_by` where it is above, else by
    `lower_by`, between `least` and `most`. A number that is none (NaN) moves nothing.

    With the factors' logarithms in the ratio 4 : 1 (1.5 and 0.9) one measurement above the bound undoes four below it.
    """

    bound: float
    raise_by: float = 1.5
    lower_by: float = 0.9
    least: float = 0.01
    most: float = 10.0

    def after(self, value: float, measured: float) -> float:
        """The next value.

        >>> steering = Steering(bound=0.5, raise_by=2.0, lower_by=0.5, least=0.25, most=3.0)
        >>> [steering.after(1.0, 0.6), steering.after(2.0, 0.6), steering.after(1.0, 0.5), steering.after(0.4, 0.1)]
        [2.0, 3.0, 0.5, 0.25]
        """
        if not math.isfinite(measured):
            return value
        moved = value * (self.raise_by if measured > self.bound else self.lower_by)
        return min(self.most, max(self.least, moved))


class CoefficientSchedule(BoundCallback):
    """Moves a coefficient of a DiagDPOTrainer's loss.

    Args:
        of: beta, a kind of the loss (its weight), or a kind's own number.
        rule: `Path`, or `Steering`, which begins at the loss's own value.
        measured: what a steering holds, as the trainer logs it.
    """

    def __init__(self, of: str, rule: Path | Steering, measured: str = "ce/chosen") -> None:
        self.of, self.rule, self.measured = of, rule, measured
        self._next = math.nan

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The value of the logged window that is open: the first, or the one that a checkpoint was written in."""
        rows: Sequence[Mapping[str, Any]] = state.log_history
        logged = max((int(row["step"]) for row in rows if "loss" in row), default=0)
        if isinstance(self.rule, Path):
            self._take(self.rule.at(logged, state.max_steps))
            return
        self._next = self.trainer.loss_as_configured.value_of(self.of)
        for row in rows:
            if row["step"] <= logged:
                self._read(row)
        self._take(self._next)
        for row in rows:
            if row["step"] > logged:  # an evaluation inside the open window: it counts from the next one on
                self._read(row)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next value, where a window begins."""
        if not self.trainer.monitor.window.open.batches:
            path = self.rule if isinstance(self.rule, Path) else None
            self._take(self._next if path is None else path.at(state.global_step, state.max_steps))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Steer by what was just measured."""
        if isinstance(self.rule, Steering):
            self._read(logs or {})

    def _read(self, row: Mapping[str, Any]) -> None:
        self._next = float(row.get(f"{COEFFICIENT}{self.of}", self._next))
        if self.measured in row:
            assert isinstance(self.rule, Steering)
            self._next = self.rule.after(self._next, float(row[self.measured]))

    def _take(self, value: float) -> None:
        self.trainer.set_coefficient(self.of, value)


def schedule_of(config: Config) -> CoefficientSchedule:
    """The callback of a checked configuration whose schedule's kind is not none."""
    s = config.schedule
    if s.kind != "steered":
        assert s.end is not None
        return CoefficientSchedule(s.of, Path(config.loss.value_of(s.of), s.end, s.over, s.kind))
    assert s.bound is not None
    return CoefficientSchedule(s.of, Steering(s.bound, s.raise_by, s.lower_by, s.least, s.most), s.measured)
