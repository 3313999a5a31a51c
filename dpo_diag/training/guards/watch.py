"""What a watch is: a class with a code, fed with the steps and evaluations of a training, that says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dpo_diag.registry import Registry
from dpo_diag.thresholds import Thresholds

EVERY = ("warn", "skip", "scale_lr", "restore", "stop")
LATE = ("warn", "scale_lr", "restore", "stop")
"""Of what is seen only after the update: it cannot be left out any more."""
TELLS = ("warn", "stop")
"""Of what no other weights and no smaller step would change."""


@dataclass(frozen=True)
class Row:
    """One row of a training batch.

    Attributes:
        tokens: response tokens, of both sides; NaN where they are not known.
        logp: the policy's mean log-prob of those tokens, nats per token.
        bad: a log-prob sum is not finite.
    """

    pair_id: str
    tokens: float
    logp: float
    bad: bool


@dataclass(frozen=True)
class Step:
    """One optimizer step before its update, the same on every process.

    Attributes:
        loss: mean of the finite losses of its micro-batches, of their sums by process where each is a share of it; NaN
            where there is none.
        bad_loss: a loss that is not finite; None where all are.
        n_rows, n_bad_rows: rows, and those whose log-probs are not finite.
        grad_norm: before clipping; None where it is not known.
        overflows: a gradient scaler (fp16) stands between: it tries scales that overflow, and leaves those steps out.
        seconds: since the update before, of the slowest process; None where something else was done in between.
        positions: positions of the batch, padding included, of all processes.
        memory: bytes used at most so far and bytes there are, where the fullest process is; None where it is not known.
        rows: the batch's rows, of all processes; every process must call it or none.
        same_loss: the loss under the coefficients that the run began with, where a schedule has moved them; None: the
            loss is that. slope: how many times as steep the loss is in the log-probs as under those coefficients.
        of_log: a row of a trainer's log, which may stand for several steps.
    """

    step: int
    loss: float
    bad_loss: float | None = None
    n_rows: int = 0
    n_bad_rows: int = 0
    grad_norm: float | None = None
    overflows: bool = False
    seconds: float | None = None
    positions: int = 0
    memory: tuple[float, float] | None = None
    rows: Callable[[], Sequence[Row]] = field(default=lambda: (), compare=False)
    same_loss: float | None = None
    slope: float = 1.0
    of_log: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one set, the same on every process.

    Attributes:
        values: metric -> value, under the names of the records.
        first: those of the set's first evaluation in this run.
    """

    step: int
    split: str
    values: Mapping[str, float]
    first: Mapping[str, float]

    def change(self, name: str) -> float:
        """Since the first evaluation; NaN where one of the two is not known."""
        return self.values.get(name, math.nan) - self.first.get(name, math.nan)


@dataclass(frozen=True)
class Said:
    """What a watch says: one line, and the numbers that made it say so.

    Attributes:
        again: the command that computes the step again; "" where its batch is not kept.
    """

    message: str
    evidence: Mapping[str, Any]
    again: str = ""


class Watch:
    """One thing that is watched. Subclasses set `code`, and override what they look at.

    Attributes:
        code: under which alerts, `guards.actions` and `guards.stop` know it.
        actions: what may be done where it speaks.
        dumps: the step's batch is kept, to be computed again.
    """

    code: ClassVar[str]
    actions: ClassVar[tuple[str, ...]] = EVERY
    dumps: ClassVar[bool] = False

    def __init__(self, limits: Thresholds) -> None:
        self.limits = limits

    def step(self, step: Step) -> Said | None:
        """Judge a step before its update; called at every step, on every process with the same numbers."""
        return None

    def evaluation(self, evaluation: Evaluation) -> Said | None:
        """Judge an evaluation during training; called on every process with the same numbers."""
        return None

    def memory(self) -> dict[str, Any]:
        """What later verdicts rest on, as arrays and numbers, kept in checkpoints."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on with what `memory` gave."""


WATCHES: Registry[type[Watch]] = Registry("guard", "dpo_diag.training.guards.watches")
"""code -> its watch."""
