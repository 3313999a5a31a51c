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
        self._since: int | None = None
        self._said = False

    def step(self, step: Step) -> Said | None:
        """See `Watch.step`."""
        if step.grad_norm is None:
            return None
        bound, least = self.limits["dead_grad_norm"], int(self.limits["guards.dead_steps"])
        if not step.grad_norm <= bound:  # one that is no number is another fault
            self._since, self._said = None, False
            return None
        self._since = step.step if self._since is None else self._since
        steps = step.step - self._since + 1  # by their numbers: a row of a log stands for those since the row before
        if steps < least or self._said:
            return None
        self._said = True
        rows = ", of which the log shows some" if step.of_log else ""
        return Said(
            f"the gradient norm has been {bound:g} or less for {steps} steps up to step {step.step}{rows}: it learns "
            "nothing",
            {"grad_norm": step.grad_norm, "steps": steps, "bound": bound},
        )

    def memory(self) -> dict[str, Any]:
        """See `Watch.memory`."""
        return {"since": -1 if self._since is None else self._since, "said": self._said}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """See `Watch.recall`."""
        since = int(memory.get("since", -1))
        self._since, self._said = None if since < 0 else since, bool(memory.get("said", False))


WATCHES.add(DeadGradients.code, DeadGradients)
