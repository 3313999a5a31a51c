"""What a tracker's client does at the end of the process, with a limit in time: a service that hangs must not hold
the process of a run that is complete."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = 1.0
"""Seconds after which a hook that took the first end for an error of its own is told once more."""


class _Overdue(BaseException):
    """Ends a hook; no client takes it for an error of its service."""


class _Hook:
    """A client's hook, which equals it: by that the client takes it back (`atexit.unregister`)."""

    def __init__(self, hook: Callable[..., object], limit: Callable[[], float], late: Callable[[float], None]) -> None:
        self._hook, self._limit, self._late, self._runs = hook, limit, late, False

    def __eq__(self, other: object) -> bool:
        return other is self or other == self._hook

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        limit, is_late = self._limit(), False
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        self._runs = True
        signal.setitimer(signal.ITIMER_REAL, limit, AGAIN)
        try:
            self._hook(*args, **kwargs)
        except _Overdue:
            self._runs, is_late = False, True
        finally:
            self._runs = False  # from here on an alarm ends nothing
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if is_late:
            self._late(limit)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._runs:
            raise _Overdue


@contextmanager
def hooks_bounded(limit: Callable[[], float], late: Callable[[float], None]) -> Iterator[None]:
    """What this thread registers inside with `atexit` is ended after as many seconds as `limit` says when it begins,
    and `late` is called with them.

    A hook runs where it would have run, in the main thread, whose state (MLflow's open run) it may look for: a signal
    ends it. Where the system has none (Windows) nothing is bounded.
    """
    register, thread = atexit.register, threading.get_ident()

    def bounded(hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        is_ours = threading.get_ident() == thread and hasattr(signal, "setitimer")
        register(_Hook(hook, limit, late) if is_ours else hook, *args, **kwargs)
        return hook

    atexit.register = bounded  # type: ignore[assignment]
    try:
        yield
    finally:
        atexit.register = register
