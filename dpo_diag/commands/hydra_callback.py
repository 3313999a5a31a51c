"""Hydra callback: a failed job of a multirun leaves its reason in its own log (by default that log stays empty)."""

from __future__ import annotations

import logging
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from dpo_diag.errors import DiagError

log = logging.getLogger(__name__)


class LogFailure(Callback):
    """One line for a mistake that a user can correct, the traceback for anything else."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Called in the worker that ran the job, while its log is open."""
        if job_return.status != JobStatus.FAILED:
            return
        error = job_return._return_value
        log.error("failed: %s", error, exc_info=None if isinstance(error, DiagError) else error)
