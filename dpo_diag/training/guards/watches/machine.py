"""The machine under a training: memory near its limit, steps that take longer than they did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.text import size
from dpo_diag.thresholds import Thresholds
from dpo_diag.training.guards.level import Level
from dpo_diag.training.guards.watch import TELLS, WATCHES, Said, Step, Watch


class MemoryLimit(Watch):
    """Memory was nearly full: once, and again when it has grown by another hundredth."""

    code, actions = "memory_limit", TELLS

    def __init__(self, limits: Thresholds) -> None:
        super().__init__(limits)
        self._said = 0.0

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        if step.memory is None or not step.memory[1] > 0:
            return None
        used, limit = step.memory
        share, bound = used / limit, self.limits["guards.memory_share"]
        if share < max(bound, self._said + 0.01 if self._said else 0.0):
            return None
        self._said = share
        return Said(
            f"{size(used)} of {size(limit)} memory in step {step.step}, {share:.0%}: a longer batch may not fit",
            {"used": used, "limit": limit, "bound": bound},
        )


class ThroughputDrop(Watch):
    """Steps take much longer per position than they did, for several in a row; said once, then it is the new level."""

    code, actions = "throughput_drop", TELLS

    def __init__(self, limits: Thresholds) -> None:
        super().__init__(limits)
        factor = 1 / limits["guards.throughput_share"]
        self._level = Level(
            window=int(limits["guards.spike_window"]), least=int(limits["guards.spike_least_steps"]),
            mads=limits["guards.spike_mads"], least_rise=lambda middle: (factor - 1) * middle,
            persists=int(limits["guards.throughput_steps"]),
        )  # fmt: skip

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        if step.seconds is None or not step.seconds > 0 or not step.positions:
            return None
        slow = self._level.judge(step.seconds / step.positions)
        if slow is None or not slow.is_level:
            return None
        now, before = 1 / slow.value, 1 / slow.median
        return Said(
            f"{now:,.0f} positions a second in step {step.step}, slow for {slow.held} steps; before: {before:,.0f}",
            {"positions_per_second": now, "before": before, "steps": slow.held},
        )

    def memory(self) -> dict[str, Any]:
        """See `Watch.memory`: nothing, a resumed run may be on another machine."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """See `Watch.recall`."""


for watch in (MemoryLimit, ThroughputDrop):
    WATCHES.add(watch.code, watch)
