"""Which process did something, and whether it is still there: what a lock, a job or a leftover says of its maker."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
