"""A tracker that cannot stop a run, nor hold it: the first failure is logged, the following ones are not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from dpo_diag.records.secrets import redacted
from dpo_diag.tracking.at_exit import hooks_bounded
from dpo_diag.tracking.base import TRACKERS, Tracker, TrackerOptions
from dpo_diag.tracking.bounded import Bounded, TooSlow
from dpo_diag.tracking.findings import Findings

LOG = logging.getLogger("dpo_diag.tracking")
PATIENCE = 3
"""Failures in a row after which a tracker is not called again: a dead service may cost seconds a call."""
CALL_LIMIT = 10.0
"""Seconds that a call between start and finish may take."""
GRACE = 15.0
"""Seconds beyond start_timeout and finish_timeout that a client which keeps them itself has for what is local."""


class SafeTracker:
    """Passes every call on, each bounded in time; a failure (any Exception, a missing package too) is logged once.

    Logged, not warned: under `-W error` a Python warning would itself stop the run. After a failed start, after
    `PATIENCE` failures in a row, and after a call that did not return, nothing is passed on but `finish`, where it can.
    """

    def __init__(self, tracker: Tracker, options: TrackerOptions | None = None, kind: str | None = None) -> None:
        self.tracker, self.options = tracker, options or TrackerOptions()
        self.kind = kind or type(tracker).__name__
        self.failures: list[str] = []
        self.where: dict[str, Any] = {}
        self._bounded = Bounded()
        self._started = False
        self._in_a_row = 0

    def start(self, config: Mapping[str, Any], run_name: str, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """As the tracker's; {"kind", "failed": reason} when it could not start."""
        where: dict[str, Any] = {}

        def call() -> None:
            where.update(self.tracker.start(config, run_name, folder))

        self._started = self._try("start", call, self.options.start_timeout + GRACE)
        self.where = where if self._started else {"kind": self.kind, "failed": self.failures[-1]}
        if self._started and where.get("failed"):
            self._warn(where["failed"])
        return self.where

    def adopt(self) -> bool:
        """Whether it is open, or its client has a run open in this process, into which alerts then go."""
        if not self._started and (adopt := getattr(self.tracker, "adopt", None)) is not None:
            try:
                self._started = bool(adopt())
            except Exception as error:  # as everywhere here
                self._warn(f"could not find the open run: {type(error).__name__}")
        return self.active

    def let_go(self) -> None:
        """No more calls; a run that was adopted stays open."""
        self._started = False
        self._bounded.end()

    def log(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether the tracker took it; likewise below."""
        return self.active and self._try("log", lambda: self.tracker.log(step, values))

    def log_outputs(self, outputs: pd.DataFrame) -> bool:
        return self.active and self._try("log the outputs", lambda: self.tracker.log_outputs(outputs))

    def log_findings(self, findings: Findings) -> bool:
        """Nothing to do for a tracker that cannot show them."""
        call = getattr(self.tracker, "log_findings", None)
        return self.active and (call is None or self._try("log the findings", lambda: call(findings)))

    def alert(self, step: int, title: str, text: str, level: str = "warn") -> bool:
        """Nothing to do for a tracker that has no alerts."""
        call = getattr(self.tracker, "alert", None)
        return self.active and (call is None or self._try("send an alert", lambda: call(step, title, text, level)))

    def finish(self, status: str = "finished") -> None:
        if self._started:
            self._started = False
            if not self._bounded.stuck:
                self._try("finish", lambda: self.tracker.finish(status), self.options.finish_timeout + GRACE)
        self._bounded.end()

    @property
    def started(self) -> bool:
        """Whether it is open."""
        return self._started

    @property
    def active(self) -> bool:
        """Whether calls are still passed on."""
        return self._started and self._in_a_row < PATIENCE and not self._bounded.stuck

    def _try(self, what: str, call: Callable[[], None], limit: float | None = None) -> bool:
        def bounded() -> None:
            with hooks_bounded(self._limit_of_the_exit, self._holds_the_exit):
                call()

        try:
            self._bounded(bounded, CALL_LIMIT if limit is None else limit)
        except Exception as error:  # the whole point: whatever a service raises, the training goes on
            reason = " ".join(str(error).split()) or "no reason given"
            kind = "" if isinstance(error, TooSlow) else f"{type(error).__name__}: "
            self._warn(f"could not {what}: {kind}{reason}")
            self._in_a_row += 1
            return False
        self._in_a_row = 0
        return True

    def _limit_of_the_exit(self) -> float:
        """Seconds for each thing that the client does when the process ends: a service that did not answer before has
        had its time."""
        return CALL_LIMIT if self._bounded.stuck else self.options.finish_timeout + GRACE

    def _holds_the_exit(self, limit: float) -> None:
        self._warn(f"its client did not end within {limit:g} s of the process' end")
        abandon = getattr(self.tracker, "abandon", None)
        if abandon is not None:
            with suppress(Exception):
                abandon()

    def _warn(self, reason: str) -> None:
        if self.where.get("send"):
            reason = f"{reason}; later: {self.where['send']}"
        if not self.failures:
            LOG.warning("tracking failed, the run goes on and its records are complete: %s", reason)
        self.failures.append(reason)


def make_tracker(
    kind: str = "none",
    *,
    project: str = "dpo_diag",
    mode: str = "offline",
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    job_type: str | None = None,
    start_timeout: float = 10.0,
    finish_timeout: float = 30.0,
    earlier: Mapping[str, Any] | None = None,
) -> SafeTracker:
    """A tracker that cannot stop a run; the arguments are those of conf/tracking (all but `name`, see `start`).

    Raises:
        DiagError: no tracker of that name is registered.
    """
    options = TrackerOptions(
        project, mode, entity, group, tuple(map(redacted, tags)), job_type, start_timeout, finish_timeout, earlier or {}
    )
    return SafeTracker(TRACKERS[kind](options), options, kind)
