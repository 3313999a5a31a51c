"""Whether a process is there, without a signal that would end it."""

from __future__ import annotations

import os

import pytest

from dpo_diag.records import process


def test_on_windows_no_signal_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the signal 0 is Ctrl-C: the system is asked by a handle."""
    asked: list[int] = []
    monkeypatch.setattr(process, "_exists_on_windows", lambda pid: bool(asked.append(pid)) or pid == 7)
    monkeypatch.setattr(process.os, "kill", lambda *_: pytest.fail("a signal was sent"))
    monkeypatch.setattr(process.os, "name", "nt")
    assert (process.exists(7), process.exists(8)) == (True, False)
    monkeypatch.undo()
    assert asked == [7, 8]


def test_elsewhere_it_is_asked_by_the_signal_that_does_nothing() -> None:
    assert process.exists(os.getpid()) and not process.exists(2**30)
