"""`dpo-train`: compose a configuration, train, explain, report; the last line printed is the run folder alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omegaconf import DictConfig

from dpo_diag.command_lines import say_next
from dpo_diag.commands.hydra_app import is_main_process, run_app, to_config
from dpo_diag.config import Config
from dpo_diag.config_checks import check
from dpo_diag.next_steps import after_import, after_interrupt
from dpo_diag.shortages import shortage


def job(cfg: DictConfig) -> str | float | tuple[float, ...]:
    """One training; returns the run folder, or the values of `sweep.objective` where it names some."""
    from hydra.core.hydra_config import HydraConfig

    config = to_config(cfg, Config)
    check(config)
    from dpo_diag.diagnosis.objective import objectives, values

    # Before the training: a name that no run records is a mistake then, and hours later only a pity.
    if config.replay is not None:
        from dpo_diag.training.job import replay_step

        run = replay_step(config, Path(config.replay), folder=Path(HydraConfig.get().runtime.output_dir))
        say_next(after_import(run), sys.stderr)
        print(run, flush=True)
        return str(run)
    wanted = objectives(config.sweep.objective, config.sweep.direction, config.prompts.kind, config.task.kind)
    folder = Path(HydraConfig.get().runtime.output_dir)
    named_by_hydra(config)
    from dpo_diag.training.job import train

    following: list[str] = []

    def read(folder: Path) -> None:
        from dpo_diag.commands.after_run import explain_and_report

        following.extend(
            explain_and_report(folder, explain=config.explain, report=config.report, thresholds=config.checks)
        )

    try:
        folder = train(config, folder, read=read)
    except BaseException as stop:
        if is_main_process() and (isinstance(stop, KeyboardInterrupt) or shortage(stop) is not None):
            for line in after_interrupt(folder):
                stop.add_note(line)  # printed last, by run_app
        raise
    if is_main_process():
        say_next(following, sys.stderr)
        print(folder, flush=True)
    if wanted:
        from dpo_diag.records import load_run

        return values(wanted, load_run(folder))
    return str(folder)


def named_by_hydra(config: Config) -> None:
    """A sweep's jobs are one group in a tracker, each experiment one job type; what the user or WANDB_RUN_GROUP says
    stays."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra, tracking = HydraConfig.get(), config.tracking
    if tracking.group is None and "WANDB_RUN_GROUP" not in os.environ and hydra.mode == RunMode.MULTIRUN:
        tracking.group = "/".join(Path(str(hydra.sweep.dir)).parts[-2:])
    if tracking.job_type is None:
        tracking.job_type = str(hydra.runtime.choices.get("experiment") or config.trainer.method)


def main() -> int:
    """Entry point of dpo-train."""
    return run_app("dpo-train", "config", job)


if __name__ == "__main__":
    sys.exit(main())
