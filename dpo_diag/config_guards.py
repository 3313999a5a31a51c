"""The dataclasses behind conf/guards: what the live guards are answered with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class GuardsConfig:
    """Live guards write alerts/. `actions`: {code: what is done where it speaks} (`training.guards.answers.ACTIONS`);
    `stop`: codes that end the run, short for `actions.CODE=stop`. When they speak: `checks.guards` thresholds.

    Attributes:
        lr_factor, lr_steps: scale_lr multiplies the learning rate of so many steps; the schedule goes on beneath it.
        max_skips: steps skipped in a row, after which the run ends: skipping does not help.
        max_restores: in one run, after which it ends: it comes back to the same place.
        dumps: steps of a run whose batch is kept in alerts/ for `dpo-train replay=`; weights_mb: with the weights of
            that step, where what trains takes so many megabytes at most.
    """

    stop: list[str] = field(default_factory=list)
    actions: Any = None
    lr_factor: float = 0.1
    lr_steps: int = 20
    max_skips: int = 10
    max_restores: int = 3
    dumps: int = 3
    weights_mb: float = 64.0
