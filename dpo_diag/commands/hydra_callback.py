"""Hydra callback: a run gets a folder of its own before anything is written, a multirun leaves word of its jobs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from dpo_diag.command_lines import override
from dpo_diag.commands.resume_trust import sign_sweep
from dpo_diag.errors import DiagError
from dpo_diag.records.jobs import Plan, plan_of, this_process, write_plan
from dpo_diag.records.names import check_name, shortened
from dpo_diag.records.remote import is_url
from dpo_diag.records.run_lock import claimed, hold
from dpo_diag.records.scratch import scratch_folder
from dpo_diag.records.secrets import redacted_words

BEGUN: list[Path] = []
"""Folders of the multiruns of this process that have begun and whose end was not told yet, see `hydra_app`."""
_NOW, _NUMBERED = "${now:", "${hydra.job.num}"
HELD: list[Callable[[], None]] = []
"""What releases the run folders that this process holds, at the end of `hydra_app.run_app`."""
_OF_THE_MULTIRUN = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper", "hydra.sweep.", "hydra.mode",
                    "hydra.run.")  # fmt: skip


class Refused(BaseException):
    """Carries a DiagError through Hydra, which makes a warning of whatever Exception a callback raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class KeepPlan(Callback):
    """Takes the run's folder; writes sweep.json: a multirun that goes on in a folder keeps what was planned first."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            _check_names(config)
            HELD.append(hold(_scratch(config) or _own_folder(config, "run")))
        except (DiagError, OSError) as error:
            raise Refused(error) from error

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            _check_names(config)
            folder = _own_folder(config, "sweep")
            _keep_inside(config)
            folder.mkdir(parents=True, exist_ok=True)  # a storage of a sweeper's may lie there
        except (DiagError, OSError) as error:
            raise Refused(error) from error
        BEGUN.append(folder)
        before = plan_of(folder)
        write_plan(folder, _plan(config) if before is None else replace(before, state=this_process()))
        if before is None:
            sign_sweep(folder)


def _check_names(config: DictConfig) -> None:
    check_name(str(config.name), "name", "output_root=FOLDER says where the runs lie")
    experiment = config.hydra.runtime.choices.get("experiment")
    if experiment is not None:
        check_name(str(experiment), "experiment")


def _scratch(config: DictConfig) -> Path | None:
    """Where another folder than Hydra's is measured into: what Hydra writes of the job goes into one that lasts as long
    as the job; None where Hydra's own, or one that the user named for it, is the run."""
    out = OmegaConf.select(config, "out")
    if not out or is_url(str(out)) or _NOW not in _pattern(config, "run"):
        return None
    ending = ExitStack()
    folder = ending.enter_context(scratch_folder("job"))
    ending.callback(close_logs, folder)
    HELD.append(ending.close)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.run.dir, config.hydra.output_subdir = str(folder), None
    return folder


def close_logs(folder: Path) -> None:
    """Hydra's logs of a job in a folder that goes: whatever is logged later is not written there."""
    for handler in list(logging.root.handlers):
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).is_relative_to(folder.resolve()):
            logging.root.removeHandler(handler)
            handler.close()


def _pattern(config: DictConfig, mode: str) -> str:
    """The folder that the configuration names, as it is written there."""
    return str(OmegaConf.to_container(config.hydra[mode], resolve=False)["dir"])  # type: ignore[index,call-overload]


def _own_folder(config: DictConfig, mode: str) -> Path:
    """The folder that the configuration names; where the clock does, one that no other start of that second has: made
    here, and written into the configuration. A task of a Slurm array has its number in the name."""
    folder = Path(str(config.hydra[mode].dir))
    if _NOW not in _pattern(config, mode):
        return folder
    task = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    if task.isdecimal() and mode == "run":
        folder = folder.with_name(f"{folder.name}_{task}")
    folder = claimed(folder)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra[mode].dir = str(folder)
        if mode == "sweep":  # each job's configuration is composed anew
            config.hydra.overrides.hydra.append(override("hydra.sweep.dir", folder))
    return folder


def _keep_inside(config: DictConfig) -> None:
    """A multirun's subfolders that the user makes of values: `job_folder` looks at each."""
    text = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # type: ignore[index,call-overload]
    if text == _NUMBERED:
        return
    if set(text) & set("'\"\\"):
        raise DiagError("quotes and backslashes", where="hydra.sweep.subdir", got=text, expected="none", usage=True)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.overrides.hydra.append(f"hydra.sweep.subdir=\"${{job_folder:'{text}'}}\"")


def job_folder(text: str) -> str:
    """The subfolder of a multirun's job: below its folder, and no name longer than file systems take."""
    return check_name("/".join(shortened(part) for part in text.split("/")), "hydra.sweep.subdir")


def _plan(config: DictConfig) -> Plan:
    sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    assert isinstance(sweeper, dict)
    task = [str(t) for t in config.hydra.overrides.task]
    jobs = None
    if str(sweeper["_target_"]).endswith(".BasicSweeper"):
        given = [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()), *task]
        parsed = OverridesParser.create().parse_overrides(given)
        jobs = tuple(tuple(job) for job in BasicSweeper.split_arguments(parsed, None)[0])
    overrides = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    assert isinstance(overrides, list)
    hydra = redacted_words(of_a_job(map(str, overrides)))
    return Plan(
        Path(sys.argv[0]).name, redacted_words(sys.argv[1:]), os.getcwd(),
        None if jobs is None else tuple(map(redacted_words, jobs)),
        hydra, sweeper.get("n_trials"), this_process(),
    )  # fmt: skip


def of_a_job(overrides: Iterable[str]) -> tuple[str, ...]:
    """Hydra's own overrides that a single job needs too."""
    return tuple(text for text in overrides if not text.lstrip("+~").startswith(_OF_THE_MULTIRUN))
