"""What a machine ran out of or does not permit, as one line: a full disk, a limit, memory, a process that is gone."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dpo_diag.errors import DiagError

_DISK = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("a file would be larger than the limit", "raise the limit: ulimit -f unlimited"),
    errno.EROFS: ("the file system is read-only", "write elsewhere: output_root=FOLDER"),
    errno.EACCES: ("permission denied", "change its permissions, or write elsewhere"),
    errno.EPERM: ("permission denied", "change its permissions, or write elsewhere"),
    errno.EIO: ("the disk reports an error", "look at the disk"),
    errno.ENAMETOOLONG: ("a name is longer than the file system takes", "name a shorter one"),
    errno.EMFILE: ("too many open files", "raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("too many open files", "close other programs"),
}
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Programs try and handle these: they are the reason only where an error is one, of a file, or was raised from one."""
_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad_alloc|cannot allocate memory|failed to allocate"
    r"|can't start new thread"  # whose stack is memory
    r"|failed to map segment from shared object",  # a library that is imported
    re.IGNORECASE,
)
_UNSAID = re.compile(r"error return without exception set|returned NULL without setting an exception")
"""Python's own words where it had no memory for a call (3.11) and none for the error either."""
_RESERVE = 32 << 20
_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|gloo(?:(?!gloo|timed out).)*timed out", re.IGNORECASE | re.DOTALL
)
"""What gloo says where a process is gone."""
_NUMBER = re.compile(r"(?:errno|os error) (\d+)", re.IGNORECASE)
_CUT = re.compile(
    r"PytorchStreamWriter failed writing|unexpected pos \d+"
    r"|inline_container(?:(?!inline_container|unexpected pos).)*unexpected pos",
    re.DOTALL,
)
"""What torch says of a file that it could not write to its end."""


_KEPT: list[mmap.mmap] = []


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, some memory is kept back (addresses alone: a limit counts them, the machine does not); where memory runs
    out it is given back, so that the line can be told and the run's end written."""
    with suppress(MemoryError, OSError):
        _KEPT.append(mmap.mmap(-1, _RESERVE))
    try:
        yield
    finally:
        _KEPT.clear()


class LostProcess(DiagError):
    """Another process of several is gone, so that this one cannot go on."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or an accelerator, ran out; what was kept is given back."""
    ran_out = _says_out_of_memory(error)
    if ran_out:
        _KEPT.clear()
    return ran_out


def _says_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, SystemError):
        return _UNSAID.search(str(error)) is not None
    return isinstance(error, (RuntimeError, ImportError)) and _MEMORY.search(str(error)) is not None


def shortage(error: BaseException) -> DiagError | None:
    """The line for an error, or for what it was raised from; None for any other error.

    >>> print(shortage(OSError(28, "No space left on device", "runs/a/run.json")))
    the disk is full; in runs/a/run.json; hint: make room
    """
    for one, is_reason in _chain(error):
        if isinstance(one, DiagError):
            return None
        if out_of_memory(one):
            return DiagError("out of memory", got=_first_line(one), hint="smaller batches, a shorter max_length")
        number, file = _errno(one), getattr(one, "filename", None)
        if number in _DISK and (number not in _REFUSED or (is_reason and file is not None)):
            what, hint = _DISK[number]
            return DiagError(what, where=file, hint=hint)
        if _is_of_a_lost_process(one):
            return LostProcess(
                "another process of this training ended", got=_first_line(one)[:120],
                hint="its own lines say why; then go on from the last checkpoint",
            )  # fmt: skip
        if _CUT.search(str(one)):
            return DiagError("a file could not be written to its end", got="a full disk, or a limit", hint="make room")
    return None


def _chain(error: BaseException | None) -> Iterator[tuple[BaseException, bool]]:
    """The error, and each that it came out of; whether it was raised from that one, not only while handling it."""
    seen: set[int] = set()
    is_reason = True
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error, is_reason
        is_reason = is_reason and error.__cause__ is not None
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _errno(error: BaseException) -> int:
    """An error's number: its own, or that in the text of a library that has none (safetensors, Arrow)."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        found = _NUMBER.search(str(error))
        return int(found[1]) if found else 0
    return 0


def _is_of_a_lost_process(error: BaseException) -> bool:
    """Whether one of several processes waited for another that is gone."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    return several and isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
