"""One process at a time writes a run folder, from its start to its end; and a new folder is one that nobody else has.

The system's file lock ends with the process that holds it, on NFS with its machine. Beside it stands who holds it, for
whoever is refused, and for file systems whose locks do not reach from one machine to another: there a process on
another machine is believed to be at it as long as it gives signs of life.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.jobs import now
from dpo_diag.records.process import Process, this
from dpo_diag.text import to_json

LOCK, OWNER, RESERVE = ".run.lock", ".run.owner.json", ".run.reserve"
OWN = frozenset((LOCK, OWNER, RESERVE))
"""What a lock leaves in a folder while it is held, or where its process was killed."""
ROOM = 1 << 16
"""Bytes of the reserve: on a full disk they make room for a run.json that says how the run ended."""
BEAT, SILENT = 15.0, 60.0
"""Seconds between two signs of life, and without one until a process on another machine is taken for dead."""
CHILDREN = 10.0
"""Seconds that the forked children of a killed process may still hold its lock."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class _Held:
    """A lock of this process: how many hold it, for one after another may within one process; the folder and those
    above it, as far as they were made for it."""

    def __init__(self, lock: BaseFileLock, made: list[Path]) -> None:
        self.lock, self.holders, self.made = lock, 1, made


_HELD: dict[Path, _Held] = {}
_GUARD = threading.RLock()
_ENDS: list[threading.Event] = []
"""Of the thread that gives the signs of life, while anything is held."""


@contextmanager
def writing(folder: str | os.PathLike[str], say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a run folder, made if absent; nothing of the lock stays behind, nor a folder that was made
    for it and is empty. Again within the process: nothing more.

    Args:
        say: gets one line where it has to wait for a sign of life; None prints to standard error.

    Raises:
        DiagError: another process holds it, with whose it is and how to go on.
    """
    release = hold(folder, say)
    try:
        yield
    finally:
        release()


def hold(folder: str | os.PathLike[str], say: Callable[[str], None] | None = None) -> Callable[[], None]:
    """As `writing`; returns what releases it. A process that ends releases all that it holds."""
    path = Path(folder)
    whole = Path(os.path.realpath(path))
    made = [place for place in (whole, *whole.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    key = path.resolve()
    with _GUARD:
        if (known := _HELD.get(key)) is not None and (key / LOCK).exists():  # else somebody removed the folder
            known.holders += 1
        else:
            lock = _acquired(key)
            try:
                _take_over(key, say or _to_stderr)
                _write_owner(key)
                _reserve(key)
            except BaseException:
                lock.release()
                raise
            _HELD[key] = _Held(lock, made)
            if not _ENDS:
                _ENDS.append(threading.Event())
                threading.Thread(target=_beat, args=_ENDS, name="dpo-diag-run-lock", daemon=True).start()
    once = itertools.count()
    return lambda: _release(key) if next(once) == 0 else None


def claimed(folder: Path) -> Path:
    """`folder`, with the first number behind its name that nobody has: it is made here, which one process alone can."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        name = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with suppress(FileExistsError):
            name.mkdir()
            return name
    raise AssertionError("unreachable")


def make_room(folder: str | os.PathLike[str]) -> None:
    """Give back what was kept for the last words of a run whose disk is full."""
    with suppress(OSError):
        (Path(folder) / RESERVE).unlink()


def held_by(folder: str | os.PathLike[str]) -> Process | None:
    """Who says that it writes a run folder; None for nobody."""
    try:
        known = parse_json((Path(folder) / OWNER).read_text(encoding="utf-8"))
        return Process(str(known["host"]), str(known["kernel"]), int(known["pid"]), known["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def owner_is_gone(folder: str | os.PathLike[str]) -> bool:
    """Whether the process that says it writes a run folder is seen to be there no more: it was killed."""
    owner = held_by(folder)
    return owner is not None and owner.alive() is False


def before_first_record(folder: Path) -> str | None:
    """Where the folder is of a start of this package that has recorded nothing, how it stands and what to do; else
    None."""
    owner = held_by(folder)
    only_held = owner is not None and all(p.name in OWN for p in folder.iterdir())
    if (folder / RUN_FILE).exists() or not (only_held or (folder / ".hydra").is_dir()):
        return None
    if owner is not None and owner.alive():
        return f"this start has recorded nothing yet; {owner} is at it: wait for it"
    log = next(iter(sorted(folder.glob("*.log"))), None)
    said = f"{log} says why" if log is not None else "what it printed says why"
    return f"this start ended before its first record; {said}, and the folder may go"


def is_vacant(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing that anybody sees: at most what a killed process left behind."""
    return not folder.exists() or (folder.is_dir() and all(p.name.startswith(".") for p in folder.iterdir()))


def _acquired(folder: Path) -> BaseFileLock:
    end = time.monotonic() + CHILDREN
    lock: BaseFileLock = FileLock(folder / LOCK)
    while True:
        try:
            lock.acquire(blocking=False)
            return lock
        except Timeout:
            owner = held_by(folder)
            if owner is None or owner.alive() is not False or time.monotonic() > end:
                raise _refusal(folder, owner) from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in _NO_LOCKS or isinstance(lock, SoftFileLock):
                raise
            lock = SoftFileLock(folder / LOCK)


def _take_over(folder: Path, say: Callable[[str], None]) -> None:
    """The lock is free, yet somebody's name is on it: killed, or on a machine that our lock does not reach."""
    owner = held_by(folder)
    if owner is None or owner == this():
        return
    # Somebody removed the lock under it. Where the system does not say since when a process runs, its number may be
    # another program's by now, and the free lock decides.
    if owner.alive() and owner.began is not None:
        raise _refusal(folder, owner)
    if owner.is_here():
        return
    last = _sign_of_life(folder)
    say(f"{folder}: {owner} wrote this run last and did not end well; waiting {SILENT:.0f} s for a sign of life")
    end = time.monotonic() + SILENT
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENT / 10))
        if _sign_of_life(folder) != last:
            raise _refusal(folder, owner)


def _refusal(folder: Path, owner: Process | None) -> DiagError:
    if owner is None:
        end = "wait for it or end it"
    elif owner.is_here():
        end = f"wait for it, or end it: kill {owner.pid}"
    else:
        end = f"wait for it, or end it there; if {owner.host} is gone: remove {folder / LOCK} and {folder / OWNER}"
    who = "another process" if owner is None else f"{owner}{_since(folder)}"
    return DiagError("another process writes this run", where=folder, got=who, expected="one at a time", hint=end)


def _since(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = parse_json((folder / OWNER).read_text(encoding="utf-8"))
        return f", {known['command']}, since {known['since']}"
    return ""


def _write_owner(folder: Path) -> None:
    known = asdict(this()) | {"command": Path(sys.argv[0]).name if sys.argv else "", "since": now()}
    try:
        (folder / OWNER).write_text(to_json(known) + "\n", encoding="utf-8")
    except OSError as error:  # which a full disk raises without saying where
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _reserve(folder: Path) -> None:
    try:
        (folder / RESERVE).write_bytes(bytes(ROOM))
    except OSError:  # the run will say itself what it has no room for
        make_room(folder)


def _sign_of_life(folder: Path) -> tuple[int, int] | None:
    try:
        with (folder / OWNER).open("rb") as file:  # opened: NFS asks its server then, and not its cache
            stat = os.fstat(file.fileno())
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _release(key: Path) -> None:
    with _GUARD:
        if (held := _HELD.get(key)) is None:
            return
        held.holders -= 1
        if held.holders:
            return
        del _HELD[key]
        if not _HELD and _ENDS:
            _ENDS.pop().set()
        # Before the lock goes: whoever waits for it finds another file then, and asks again.
        make_room(key)
        with suppress(OSError):
            (key / OWNER).unlink()
            if os.name == "posix":
                (key / LOCK).unlink()
        with suppress(OSError):
            held.lock.release()
        with suppress(OSError):  # which says that something is in it
            for place in held.made:
                place.rmdir()


def _beat(ends: threading.Event) -> None:
    while not ends.wait(BEAT):
        for key in list(_HELD):  # without the guard, which is held while another folder's owner is waited for
            with suppress(OSError):
                os.utime(key / OWNER)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _forget_in_child() -> None:
    """A forked child (a data loader's worker) holds nothing: the lock is its parent's, who takes its name off."""
    global _GUARD
    _HELD.clear()
    _ENDS.clear()
    _GUARD = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
