"""No gradient arrives: everything is frozen, the loss has saturated, or a mask leaves nothing to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.thresholds import Thresholds
from dpo_diag.training.guards.watch import TELLS, WATCHES, Said, Step, Watch


class DeadGradients(Watch):
    """The gradient's norm is as good as 0 for several steps in a row; said once in each such stretch."""

    code, actions = "dead_gradients", TELLS

    def __init__(self, limits: Thresholds) -> None:
        super().__init__(limits)
        self._in_a_row = 0

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        if step.grad_norm is None:
            return None
        bound, steps = self.limits["dead_grad_norm"], int(self.limits["guards.dead_steps"])
        self._in_a_row = self._in_a_row + 1 if step.grad_norm <= bound else 0
        if self._in_a_row != steps:
            return None
        return Said(
            f"the gradient norm has been {bound:g} or less for {steps} steps up to step {step.step}: it learns nothing",
            {"grad_norm": step.grad_norm, "steps": steps, "bound": bound},
        )

    def memory(self) -> dict[str, Any]:
        """See `Watch.memory`."""
        return {"n": self._in_a_row}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """See `Watch.recall`."""
        self._in_a_row = int(memory.get("n", 0))


WATCHES.add(DeadGradients.code, DeadGradients)
