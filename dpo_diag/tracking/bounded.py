"""Calls with a limit in time: a service that hangs must not hold the training that it shows."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from typing import Any


class TooSlow(Exception):
    """A call did not return within its limit."""


class Bounded:
    """Makes calls one after another in a thread of its own and waits for each no longer than its limit.

    A call that is too slow is left to itself in its thread, which ends with the process; no other call is made after
    it. One thread for all: clients keep what they know of a run in the thread that opened it.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.stuck = False

    def __call__(self, call: Callable[[], Any], limit: float) -> Any:
        """What the call returns or raises.

        Raises:
            TooSlow: it did not end within `limit` seconds, or an earlier one did not.
        """
        if self.stuck:
            raise TooSlow("an earlier call has not returned")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="dpo-diag-tracker", daemon=True)
            self._thread.start()
        done = threading.Event()
        result: list[Any] = []
        raised: list[BaseException] = []

        def run() -> None:
            try:
                result.append(call())
            except BaseException as error:
                raised.append(error)
            finally:
                done.set()

        output = sys.stdout
        self._calls.put(run)
        if not done.wait(limit):
            self.stuck = True
            # A client that is kept quiet meanwhile (`redirect_stdout`, which is the whole process') would keep what the
            # run prints from now on, too.
            sys.stdout = output
            raise TooSlow(f"no answer within {limit:g} s")
        if raised:
            raise raised[0]
        return result[0]

    def end(self) -> None:
        """Let the thread end when its calls are done."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread = None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
