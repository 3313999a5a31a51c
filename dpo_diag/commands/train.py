"""`dpo-train`: compose a configuration, train, explain, report; the last line printed is the run folder alone."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from dpo_diag.commands.hydra_app import is_main_process, run_app, to_config
from dpo_diag.config import Config, check
from dpo_diag.next_steps import after_interrupt, say_next


def job(cfg: DictConfig) -> str:
    """One training; returns the run folder."""
    from hydra.core.hydra_config import HydraConfig

    config = to_config(cfg, Config)
    check(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    from dpo_diag.training.job import train

    try:
        folder = train(config, folder)
        if is_main_process():
            from dpo_diag.commands.after_run import explain_and_report

            following = explain_and_report(
                folder, explain=config.explain, report=config.report, thresholds=config.checks
            )  # fmt: skip
            say_next(following, sys.stderr)
            print(folder, flush=True)
    except KeyboardInterrupt as stop:
        for line in after_interrupt(folder) if is_main_process() else ():
            stop.add_note(line)  # printed last, by run_app
        raise
    return str(folder)


def main() -> int:
    """Entry point of dpo-train."""
    return run_app("dpo-train", "config", job)


if __name__ == "__main__":
    sys.exit(main())
