"""SQLite files that other programs write: opened without touching the user's folder."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.records.scratch import scratch_folder

MAGIC = b"SQLite format 3\0"
"""How such a file begins."""


def tables_of(file: Path) -> frozenset[str]:
    """Names of its tables; none where it is no database, or damaged."""
    try:
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
            shutil.copyfile(file, copy)
            for ending in ("-wal", "-shm"):
                if (beside := file.with_name(file.name + ending)).is_file():
                    shutil.copyfile(beside, copy.with_name(copy.name + ending))
            connection = sqlite3.connect(copy)
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
