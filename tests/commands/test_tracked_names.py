"""What Hydra says of a job, as trackers group it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dpo_diag.commands.train import named_by_hydra
from dpo_diag.config import Config


def named(monkeypatch: pytest.MonkeyPatch, mode: RunMode, experiment: str | None, **tracking: Any) -> tuple[Any, Any]:
    """(group, job type) of a job of the multirun runs/sql_dpo/2026-11-29."""
    choices = {} if experiment is None else {"experiment": experiment}
    job = SimpleNamespace(
        mode=mode, sweep=SimpleNamespace(dir="runs/sql_dpo/2026-11-29"), runtime=SimpleNamespace(choices=choices)
    )
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: job))
    config = Config()
    for key, value in tracking.items():
        setattr(config.tracking, key, value)
    named_by_hydra(config)
    return config.tracking.group, config.tracking.job_type


def test_a_sweep_is_one_group_and_its_experiment_the_job_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    assert named(monkeypatch, RunMode.MULTIRUN, "sql_dpo") == ("sql_dpo/2026-11-29", "sql_dpo")
    assert named(monkeypatch, RunMode.RUN, None) == (None, "dpo")


def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    assert named(monkeypatch, RunMode.MULTIRUN, "sql_dpo", group="mine", job_type="try") == ("mine", "try")
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert named(monkeypatch, RunMode.MULTIRUN, None)[0] is None  # each tracker reads it from the environment
