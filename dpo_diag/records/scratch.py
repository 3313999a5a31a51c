"""Folders for a while: gone with the block, and those of killed processes with the next one that is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".lock"


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """An empty folder `dpo-diag-PURPOSE-...` where the system keeps temporary ones, removed at the end of the block."""
    _remove_left_behind()
    folder = Path(tempfile.mkdtemp(prefix=f"dpo-diag-{purpose}-"))
    lock = FileLock(folder.with_name(f"{folder.name}{_LOCK}"))  # beside it: the folder is empty
    try:
        lock.acquire()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _ended(lock)


def _remove_left_behind() -> None:
    """What this user's killed processes left: their locks are free."""
    for path in Path(tempfile.gettempdir()).glob(f"dpo-diag-*{_LOCK}"):
        with suppress(OSError, Timeout):
            if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
                continue
            lock = FileLock(path)
            lock.acquire(blocking=False)
            shutil.rmtree(path.with_name(path.name.removesuffix(_LOCK)), ignore_errors=True)
            _ended(lock)


def _ended(lock: FileLock) -> None:
    with suppress(OSError):
        if os.name == "posix":  # held still: whoever waits for it finds another file then
            os.unlink(lock.lock_file)
        lock.release()
