"""What a machine ran out of is told as such; what was only met on the way is not taken for the reason."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from dpo_diag.shortages import LostProcess, out_of_memory, shortage


def _while_handling(met: Exception, raised: Exception) -> Exception:
    try:
        try:
            raise met
        except Exception:
            raise raised  # noqa: B904  (the point)
    except Exception as error:
        return error


def test_a_permission_met_on_the_way_is_not_the_reason() -> None:
    """A mistake of our own while a cache that may not be read was handled stays a mistake; a full disk stays one."""
    refused = PermissionError(errno.EACCES, "Permission denied", "/home/x/.cache")
    assert shortage(_while_handling(refused, TypeError("a mistake"))) is None
    assert shortage(OSError(errno.EPERM, "Operation not permitted")) is None
    assert str(shortage(refused)).startswith("permission denied; in /home/x/.cache")
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a")
    assert str(shortage(_while_handling(full, RuntimeError("cannot write")))) == (
        "the disk is full; in runs/a; hint: make room"
    )


def test_a_thread_that_cannot_start_is_memory_and_a_lost_process_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert out_of_memory(RuntimeError("can't start new thread"))
    assert out_of_memory(SystemError("error return without exception set"))  # Python 3.11, for a call
    assert out_of_memory(ImportError("a.so: failed to map segment from shared object"))
    assert not out_of_memory(SystemError("bad argument to internal function"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert isinstance(shortage(RuntimeError("gloo: Connection closed by peer [127.0.0.1]:9")), LostProcess)
    assert not isinstance(shortage(MemoryError()), LostProcess)


def test_memory_is_kept_back_for_the_line() -> None:
    """Under a limit the process fills its memory with small objects to the last byte: without what was given back no
    list of a thousand fits; with it, megabytes do."""
    code = """
import resource
from dpo_diag.shortages import memory_kept, out_of_memory
with memory_kept():
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (8 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    filled, size = [], 1 << 16
    while size:
        try:
            filled.append(bytes(size))
        except MemoryError as error:
            last, size = error, size // 2 if size > 64 else 0
    try:
        bytes(1 << 20)
        print("nothing ran out")
    except MemoryError:
        pass
    assert out_of_memory(last)
    print(len(bytes(16 << 20)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [str(16 << 20)], done.stderr
