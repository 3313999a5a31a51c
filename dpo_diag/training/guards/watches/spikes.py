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


def _suspects(rows: Mapping[str, Any]) -> str:
    """ "; of its 8 rows X is the least likely (-6.1 nats per token) and the longest (79 tokens)"; "" where none is
    known."""
    least, longest = (rows[name][:1] for name in ("least_likely", "longest"))
    said = [(row["pair_id"], f"the least likely ({row['logp_per_token']:.3g} nats per token)") for row in least]
    said += [(row["pair_id"], f"the longest ({row['tokens']:.0f} tokens)") for row in longest]
    if len(said) == 2 and said[0][0] == said[1][0]:
        said = [(said[0][0], f"{said[0][1]} and {said[1][1]}")]
    told = ", ".join(f"{pair_id} is {what}" for pair_id, what in said)
    return f"; of its {plural(rows['n_pairs'], 'row')} {told}" if said else ""


class _Spikes(Watch):
    """Judges one number of a step by its level, as it was trained on and as it would be under the coefficients that the
    run began with: what a schedule moves on purpose stands out of one of the two alone."""

    what: str
    dumps = True

    def __init__(self, limits: Thresholds) -> None:
        super().__init__(limits)
        self._level, self._same = self._new_level(), self._new_level()

    def _new_level(self) -> Level:
        limits = self.limits
        return Level(
            window=int(limits["guards.spike_window"]), least=int(limits["guards.spike_least_steps"]),
            mads=limits["guards.spike_mads"], least_rise=self._least_rise,
            persists=int(limits["guards.spike_persists"]),
        )  # fmt: skip

    def _least_rise(self, middle: float) -> float:
        raise NotImplementedError

    def _values(self, step: Step) -> tuple[float | None, float | None]:
        """As it was, and under the coefficients of the beginning; None where it is not known."""
        raise NotImplementedError

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        spike, same = (
            None if value is None or not math.isfinite(value) else level.judge(value)
            for level, value in zip((self._level, self._same), self._values(step), strict=True)
        )
        if spike is None or same is None:
            return None
        rows = rows_shown(step.rows())
        return Said(self._line(spike, step, rows), self._evidence(spike, step, rows))

    def _line(self, spike: Spike, step: Step, rows: Mapping[str, Any]) -> str:
        unit = "logged row" if step.of_log else "step"
        stays = (
            f"; it has stood there for {plural(spike.held, unit)}, which are the new level" if spike.is_level else ""
        )
        return (
            f"{self.what} {spike.value:.4g} in step {step.step}: the {plural(spike.n, unit)} before have median "
            f"{spike.median:.4g} and median absolute deviation {spike.mad:.2g}, the bound is {spike.bound:.4g}{stays}"
            f"{_suspects(rows)}"
        )

    def _evidence(self, spike: Spike, step: Step, rows: Mapping[str, Any]) -> dict[str, Any]:
        numbers = {"loss": step.loss, "grad_norm": step.grad_norm}
        level = {"median": spike.median, "mad": spike.mad, "bound": spike.bound, "held": spike.held}
        return {name: v for name, v in numbers.items() if v is not None} | level | dict(rows)

    def memory(self) -> dict[str, Any]:
        """See `Watch.memory`."""
        return self._level.memory() | {f"same_{name}": values for name, values in self._same.memory().items()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """See `Watch.recall`."""
        self._level.recall(memory)
        same = {name: memory.get(f"same_{name}", memory.get(name, ())) for name in self._level.memory()}
        self._same.recall(same)  # a checkpoint of before there were two levels has the one


class LossSpike(_Spikes):
    """The loss of an optimizer step stands out of those before it."""

    code, what = "loss_spike", "loss"

    def _least_rise(self, middle: float) -> float:
        return self.limits["guards.spike_min"]

    def _values(self, step: Step) -> tuple[float | None, float | None]:
        return step.loss, step.loss if step.same_loss is None else step.same_loss


class GradSpike(_Spikes):
    """The norm of the gradient, before clipping, stands out of those before it."""

    code, what = "grad_spike", "gradient norm"

    def _least_rise(self, middle: float) -> float:
        return (self.limits["guards.grad_spike_factor"] - 1) * middle

    def _values(self, step: Step) -> tuple[float | None, float | None]:
        return step.grad_norm, None if step.grad_norm is None else step.grad_norm / step.slope


for watch in (LossSpike, GradSpike):
    WATCHES.add(watch.code, watch)
