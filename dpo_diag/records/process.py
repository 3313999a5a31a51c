"""Which process did something, and whether it is still there: what a lock, a job or a leftover says of its maker."""

from __future__ import annotations

import ctypes
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_MAY_ASK, _DENIED, _STILL_ACTIVE = 0x1000, 5, 259
"""Of Windows: PROCESS_QUERY_LIMITED_INFORMATION, ERROR_ACCESS_DENIED, STILL_ACTIVE."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Process:
    """One process.

    Attributes:
        host: the machine's name.
        kernel: one start of one machine, where the system names it (Linux); else "". Names of machines repeat.
        pid: its number, which a later process may have again.
        began: clock ticks since boot (Linux), which tell it from that one; None where the system does not say.
    """

    host: str
    kernel: str
    pid: int
    began: int | None

    def is_here(self) -> bool:
        """Whether it runs, or ran, under this kernel: only then `alive` can be known, and a file lock is sure."""
        if self.kernel and (here := kernel()):
            return self.kernel == here
        return self.host == socket.gethostname()

    def alive(self) -> bool | None:
        """Whether it is there; None on another machine, where that cannot be seen."""
        if not self.is_here():
            return None
        return process_began(self.pid) == self.began if self.began is not None else exists(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.is_here() else f" on {self.host}")


def this() -> Process:
    """The process that asks."""
    return Process(socket.gethostname(), kernel(), os.getpid(), process_began(os.getpid()))


@cache
def kernel() -> str:
    """As `Process.kernel`."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def process_began(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where there is none, or the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def exists(pid: int) -> bool:
    """Whether a process of this number is there."""
    if os.name == "nt":  # where os.kill(pid, 0) is Ctrl-C
        return _exists_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _exists_on_windows(pid: int) -> bool:
    """Asked by a handle that may do no more than ask: a process that ended keeps its number as long as one is open."""
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    handle = kernel32.OpenProcess(_MAY_ASK, False, pid)
    if not handle:
        return bool(ctypes.get_last_error() == _DENIED)  # type: ignore[attr-defined]
    code = ctypes.c_ulong()
    known = kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel32.CloseHandle(handle)
    return bool(known and code.value == _STILL_ACTIVE)
