"""Being told to end: Ctrl-C, and SIGTERM, which Slurm, Kubernetes and torchrun send some seconds before they kill."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = "DPO_DIAG_GRACE"
"""Environment: seconds that a training may take after SIGTERM to end its step and write a checkpoint."""
_GRACE = 20.0
"""Of the 30 that Slurm, Kubernetes and torchrun give by default; the rest is for the records."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whatever a Ctrl-C ends, it ends in the same way."""


class StepEnd:
    """Whether a training was told to end when its step does."""

    asked = False


_STEP: list[StepEnd] = []
"""While a training runs that ends with its step."""


def exit_status(stop: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM: 128 and the signal's number."""
    return 143 if isinstance(stop, Terminated) else 130


def word(stop: KeyboardInterrupt) -> str:
    """What is said of it."""
    return "terminated" if isinstance(stop, Terminated) else "interrupted"


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`, once, and then no more while the end is written. A handler of somebody
    else's stays, and outside the main thread nothing is changed."""
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def with_the_step() -> Iterator[StepEnd]:
    """Inside, SIGTERM only asks, and the training ends with its step; after the grace, or asked again, it is raised."""
    ours = _in_main_thread() and hasattr(signal, "SIGALRM") and signal.getsignal(signal.SIGTERM) is _on_sigterm
    end = StepEnd()
    if not ours:
        yield end
        return
    before = signal.signal(signal.SIGALRM, _on_alarm)
    _STEP.append(end)
    try:
        yield end
    finally:
        _STEP.remove(end)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, neither signal is heard: what a stopped run still has to write is short, and is written once."""
    if not _in_main_thread():
        yield
        return
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


def sigterm_is_late() -> None:
    """What ends has ended for another reason: a SIGTERM behind it (torchrun's, where another process died) would only
    hide that."""
    if _in_main_thread() and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if _STEP and not _STEP[-1].asked:
        _STEP[-1].asked = True
        signal.setitimer(signal.ITIMER_REAL, _seconds())
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _on_alarm(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _seconds() -> float:
    try:
        return max(0.1, float(os.environ.get(GRACE, _GRACE)))
    except ValueError:
        return _GRACE


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
