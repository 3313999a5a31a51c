"""A tracker that cannot stop a run: the first failure is logged, the following ones are not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from dpo_diag.tracking.base import TRACKERS, Tracker, TrackerOptions

LOG = logging.getLogger("dpo_diag.tracking")
PATIENCE = 3
"""Failures in a row after which a tracker is not called again: a dead service may cost minutes a call."""


class SafeTracker:
    """Passes every call on; a failure (any Exception, a missing package too) is logged once as a warning.

    Logged, not warned: under `-W error` a Python warning would itself stop the run. After a failed start, and after
    `PATIENCE` failures in a row, nothing is passed on but `finish`.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.failures: list[str] = []
        self._started = False
        self._in_a_row = 0

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """As the tracker's; {"kind", "failed": reason} when it could not start."""
        where: dict[str, Any] = {}

        def call() -> None:
            where.update(self.tracker.start(config, run_name, folder))

        self._started = self._try("start", call)
        return where if self._started else {"kind": type(self.tracker).__name__, "failed": self.failures[-1]}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.active:
            self._try("log", lambda: self.tracker.log(step, values))

    def log_outputs(self, outputs: pd.DataFrame) -> None:
        if self.active:
            self._try("log the outputs", lambda: self.tracker.log_outputs(outputs))

    def finish(self, status: str = "finished") -> None:
        if self._started:
            self._started = False
            self._try("finish", lambda: self.tracker.finish(status))

    @property
    def active(self) -> bool:
        """Whether calls are still passed on."""
        return self._started and self._in_a_row < PATIENCE

    def _try(self, what: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # the whole point: whatever a service raises, the training goes on
            reason = " ".join(f"could not {what}: {type(error).__name__}: {error}".split())
            if not self.failures:
                LOG.warning("tracking failed, the run goes on and its records are complete: %s", reason)
            self.failures.append(reason)
            self._in_a_row += 1
            return False
        self._in_a_row = 0
        return True


def safe(tracker: Tracker) -> SafeTracker:
    """The tracker, unable to stop a run."""
    return tracker if isinstance(tracker, SafeTracker) else SafeTracker(tracker)


def make_tracker(
    kind: str = "none",
    *,
    project: str = "dpo_diag",
    mode: str = "offline",
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
) -> SafeTracker:
    """A tracker that cannot stop a run; the arguments are those of conf/tracking (all but `name`, see `start`).

    Raises:
        DiagError: no tracker of that name is registered.
    """
    return safe(TRACKERS[kind](TrackerOptions(project, mode, entity, group, tuple(tags))))
