"""Hydra callback: the beginning of a multirun leaves word of every job that it will run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dpo_diag.records.jobs import Plan, plan_of, this_process, write_plan
from dpo_diag.records.secrets import redacted_words

BEGUN: list[Path] = []
"""Folders of the multiruns of this process that have begun and whose end was not told yet, see `hydra_app`."""
_OF_THE_MULTIRUN = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.sweep.", "hydra.mode",
                    "hydra.run.")  # fmt: skip


class KeepPlan(Callback):
    """Writes sweep.json; a multirun that goes on in a folder keeps what was planned there first."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(str(config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)  # a storage of a sweeper's may lie there
        BEGUN.append(folder)
        before = plan_of(folder)
        write_plan(folder, _plan(config) if before is None else replace(before, state=this_process()))


def _plan(config: DictConfig) -> Plan:
    sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    assert isinstance(sweeper, dict)
    task = [str(t) for t in config.hydra.overrides.task]
    jobs = None
    if str(sweeper["_target_"]).endswith(".BasicSweeper"):
        given = [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()), *task]
        overrides = OverridesParser.create().parse_overrides(given)
        jobs = tuple(tuple(job) for job in BasicSweeper.split_arguments(overrides, None)[0])
    hydra = redacted_words(of_a_job(map(str, config.hydra.overrides.hydra)))
    return Plan(
        Path(sys.argv[0]).name, redacted_words(sys.argv[1:]), os.getcwd(),
        None if jobs is None else tuple(map(redacted_words, jobs)),
        hydra, sweeper.get("n_trials"), this_process(),
    )  # fmt: skip


def of_a_job(overrides: Iterable[str]) -> tuple[str, ...]:
    """Hydra's own overrides that a single job needs too."""
    return tuple(text for text in overrides if not text.lstrip("+~").startswith(_OF_THE_MULTIRUN))
