"""Spikes of the loss and of the gradient's norm, against the level of the steps before.

DVG016 asks more of a spike, since it sees what comes after: it must stand above the rows on both sides, with the trend
between them taken out. Here a jump that stays is reported at once, step by step until it is the new level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_diag.text import plural
from dpo_diag.thresholds import Thresholds
from dpo_diag.training.guards.level import Level, Spike
from dpo_diag.training.guards.watch import WATCHES, Row, Said, Step, Watch

SHOWN = 3
"""Rows that are shown as the longest, and as the least likely ones."""
_MOST_IDS = 256


def rows_shown(rows: Sequence[Row]) -> dict[str, Any]:
    """The batch's pair ids (256 at most), its longest rows, and its rarest ones: those whose tokens the policy itself
    gives the lowest mean log-prob, which needs no counts of any corpus."""
    known = [row for row in rows if not math.isnan(row.tokens)]
    longest = sorted(known, key=lambda row: -row.tokens)[:SHOWN]
    rarest = sorted((r for r in known if math.isfinite(r.logp)), key=lambda row: row.logp)[:SHOWN]
    return {
        "pair_ids": [row.pair_id for row in rows][:_MOST_IDS],
        "n_pairs": len(rows),
        "longest": [{"pair_id": row.pair_id, "tokens": row.tokens} for row in longest],
        "least_likely": [{"pair_id": row.pair_id, "logp_per_token": row.logp} for row in rarest],
    }


class _Spikes(Watch):
    """Judges one number of a step by its level."""

    what: str
    dumps = True

    def __init__(self, limits: Thresholds) -> None:
        super().__init__(limits)
        self._level = Level(
            window=int(limits["guards.spike_window"]), least=int(limits["guards.spike_least_steps"]),
            mads=limits["guards.spike_mads"], least_rise=self._least_rise,
            persists=int(limits["guards.spike_persists"]),
        )  # fmt: skip

    def _least_rise(self, middle: float) -> float:
        raise NotImplementedError

    def _value(self, step: Step) -> float | None:
        raise NotImplementedError

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        value = self._value(step)
        spike = None if value is None or not math.isfinite(value) else self._level.judge(value)
        return None if spike is None else Said(self._line(spike, step), self._evidence(spike, step))

    def _line(self, spike: Spike, step: Step) -> str:
        stays = (
            f"; it has stood there for {plural(spike.held, 'step')}, which are the new level" if spike.is_level else ""
        )
        return (
            f"{self.what} {spike.value:.4g} in step {step.step}: the {spike.n} steps before have median "
            f"{spike.median:.4g} and median absolute deviation {spike.mad:.2g}, the bound is {spike.bound:.4g}{stays}"
        )

    def _evidence(self, spike: Spike, step: Step) -> dict[str, Any]:
        numbers = {"loss": step.loss, "grad_norm": step.grad_norm}
        level = {"median": spike.median, "mad": spike.mad, "bound": spike.bound, "held": spike.held}
        return {name: v for name, v in numbers.items() if v is not None} | level | rows_shown(step.rows())

    def memory(self) -> dict[str, Any]:
        """See `Watch.memory`."""
        return self._level.memory()

    def recall(self, memory: Mapping[str, Any]) -> None:
        """See `Watch.recall`."""
        self._level.recall(memory)


class LossSpike(_Spikes):
    """The loss of an optimizer step stands out of those before it."""

    code, what = "loss_spike", "loss"

    def _least_rise(self, middle: float) -> float:
        return self.limits["guards.spike_min"]

    def _value(self, step: Step) -> float | None:
        return step.loss


class GradSpike(_Spikes):
    """The norm of the gradient, before clipping, stands out of those before it."""

    code, what = "grad_spike", "gradient norm"

    def _least_rise(self, middle: float) -> float:
        return (self.limits["guards.grad_spike_factor"] - 1) * middle

    def _value(self, step: Step) -> float | None:
        return step.grad_norm


for watch in (LossSpike, GradSpike):
    WATCHES.add(watch.code, watch)
