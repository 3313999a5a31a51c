"""SQLite files that other programs write: opened without touching the user's folder, and trusted with nothing.

What is read are plain tables. A view, a function or a recursion that somebody put into the file does not run, and a
query takes no more steps than a file of its size can need.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dpo_diag.documents import regular
from dpo_diag.errors import DiagError
from dpo_diag.records.scratch import scratch_folder

_STEPS, _STEPS_A_BYTE = 10_000_000, 50
"""Steps of sqlite's machine that reading takes at most, and for each byte of the file; a row takes some 20."""
_LONGEST = 64 << 20
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_PRAGMA}
_FUNCTIONS = ("coalesce",)
MAGIC = b"SQLite format 3\0"
"""How such a file begins."""


def tables_of(file: Path) -> frozenset[str]:
    """Names of its tables; none where it is no database, or damaged."""
    try:
        regular(file)
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            return frozenset(
                row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            )
    except sqlite3.Error:
        return frozenset()


@contextmanager
def opened(file: Path, expected: str) -> Iterator[sqlite3.Connection]:
    """A connection to a copy: opening a database beside its write-ahead log would write to the user's folder.

    Raises:
        DiagError: it cannot be copied or opened, or what is done with it fails.
    """
    with scratch_folder("database") as scratch:
        copy = scratch / "project.db"
        try:
            shutil.copyfile(regular(file), copy)
            for ending in ("-wal", "-shm"):
                if (beside := file.with_name(file.name + ending)).is_file():
                    shutil.copyfile(beside, copy.with_name(copy.name + ending))
            connection = sqlite3.connect(copy)
            _bound(connection, copy.stat().st_size)
        except (OSError, sqlite3.Error) as error:
            raise DiagError("the database cannot be opened", where=file, got=error) from error
        try:
            yield connection
        except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeDecodeError) as error:
            raise DiagError(
                "the database cannot be read", where=file, got=error, expected=expected, hint="copy it again"
            ) from error
        finally:
            connection.close()


def _bound(connection: sqlite3.Connection, size: int) -> None:
    """Let a connection read plain tables alone, with an end."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA query_only = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)

    def allow(action: int, first: str | None, second: str | None, _: str | None, inside: str | None) -> int:
        # `inside` names the view or trigger that asks.
        plain = action in _ALLOWED and inside is None
        if action == sqlite3.SQLITE_FUNCTION:
            plain = plain and second in _FUNCTIONS
        return sqlite3.SQLITE_OK if plain else sqlite3.SQLITE_DENY

    left = _STEPS + _STEPS_A_BYTE * size
    every = 100_000

    def stop() -> bool:
        nonlocal left
        left -= every
        return left < 0

    connection.set_authorizer(allow)
    connection.set_progress_handler(stop, every)
