"""Hydra callback: a failed job of a multirun leaves its reason in its own log (by default that log stays empty), and
its end shows the table of its runs."""

from __future__ import annotations

import logging
import sys
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_multirun, say_next

log = logging.getLogger(__name__)


class LogFailure(Callback):
    """One line for a mistake that a user can correct, the traceback for anything else."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Called in the worker that ran the job, while its log is open."""
        if job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value
        log.error("failed: %s", error, exc_info=None if isinstance(error, DiagError) else error)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """The runs side by side on standard error: standard output ends with the last run's folder."""
        folder = str(config.hydra.sweep.dir)
        from dpo_diag.commands.sweep import lines
        from dpo_diag.diagnosis.sweep import sweep

        try:
            print("", *lines(sweep([folder])), sep="\n", file=sys.stderr)
        except DiagError:  # no job came as far as a run: each said why
            return
        say_next(after_multirun(folder), sys.stderr)
