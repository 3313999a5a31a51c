"""`hydra/sweeper=optuna`: the plugin's own configuration with a storage that survives, and with directions that follow
`sweep.objective`. A failed trial is told at the end like any failed job, and does not end the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf


@dataclass
class SurvivingSweeper(OptunaSweeperConf):  # type: ignore[misc]  # the plugin has no types
    """What differs from the plugin's defaults: minimize, a study in memory, two trials at a time, the end at once."""

    direction: Any = "${objective_directions:${sweep.objective},${sweep.direction},${prompts.kind},${task.kind}}"
    storage: Any = "sqlite:///${hydra.sweep.dir}/optuna.db"
    study_name: str | None = "sweep"
    n_jobs: int = 1
    max_failure_rate: float = 1.0


def register() -> None:
    """In the place of the plugin's, which Hydra puts there when it looks for plugins, once: so that comes first."""
    Plugins.instance()
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=SurvivingSweeper, provider="dpo_diag")
