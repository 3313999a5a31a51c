"""Where dpo-score and dpo-generate write, a folder or a URL that a folder here stands in for, and who does the work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_diag.commands.hydra_app import is_main_process
from dpo_diag.commands.hydra_callback import HELD
from dpo_diag.config_checkpoints import CheckpointsConfig
from dpo_diag.errors import DiagError
from dpo_diag.records.remote import download, is_run, is_url, upload
from dpo_diag.records.run_lock import hold

if TYPE_CHECKING:
    from dpo_diag.inference.launch import Launch


def say(line: str) -> None:
    """A line of progress, on standard error; of several processes each may say what it does."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RunPlace:
    """`out` as it was given (a path or URL), the folder on this machine, and how the work is shared (None: alone)."""

    out: str
    folder: Path
    launch: Launch | None

    @classmethod
    def of(cls, config: CheckpointsConfig, own: Path) -> RunPlace:
        """What a configuration says; `own` is the folder that Hydra made. A run behind a URL is brought there.

        Raises:
            DiagError: several processes, and no `out` that all of them know.
        """
        from dpo_diag.inference.by_rank import place
        from dpo_diag.inference.by_ray import Cluster
        from dpo_diag.inference.launch import Launch, parts_wait

        (rank, world), launcher = place(), config.launcher
        if launcher == "auto":  # one process alone goes on with what several began, where several can do it
            goes_on = config.out and not config.takes_one_process and parts_wait(config.out)
            launcher = "rank" if world > 1 or goes_on else "none"
        if launcher == "rank" and not config.out:
            raise DiagError(
                "several processes need one place to meet", where="out", got=f"nothing, in process {rank} of {world}",
                hint="name the run folder, out=RUN: the same command again goes on from there", usage=True,
            )  # fmt: skip
        cluster = Cluster(config.ray_address, config.workers, config.worker_cpus)
        launch = None if launcher == "none" else Launch(launcher, config.shard_size, cluster)
        out = str(config.out or own)
        if not is_url(out):
            if is_main_process():  # from now on: before any model is loaded
                HELD.append(hold(out))
            return cls(out, Path(out), launch)
        if is_run(out):
            download(out, own)
        return cls(out, own, launch)

    def finish(self) -> str:
        """Put the run where it belongs; returns where that is. Nothing to do for a folder."""
        if is_url(self.out) and is_main_process():
            upload(self.folder, self.out)
        return self.out
