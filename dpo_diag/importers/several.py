"""Which of several runs in one source is taken: the one that `--run` names, else a stated one; always said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from dpo_diag.errors import DiagError
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import RowStore

T = TypeVar("T")
RUN_COLUMNS = ("run", "run_name", "run_id", "run name", "run id")
"""Columns of a stacked table that say whose row it is."""
UNNAMED = "unnamed"
"""Rows of a stacked table that name no run."""
LISTED = 12


def choose(names: Sequence[str], asked: str | None, where: Path, default: str | None = None) -> str:
    """The run to read.

    Args:
        names: the source's runs, at least one; a path's last part names it too, where it is the only one of that name.
        default: the one that is taken where several are there and none is asked for.

    Raises:
        DiagError: no run of that name, or several and neither asked nor a default.
    """
    if asked is None:
        if len(names) == 1 or default is not None:
            return default or names[0]
        raise DiagError("which run", where=where, got=_listed(names), hint="name one with --run NAME", usage=True)
    found = named(names, asked)
    if found is None:
        expected = f"one of {_listed(names)}" if names else "a source that holds several runs"
        raise DiagError("no such run", where=f"--run, {where}", got=asked, expected=expected, usage=True)
    return found


def named(names: Sequence[str], asked: str) -> str | None:
    """The one of the runs that is meant, None if none or several could be."""
    last = [name for name in names if PurePosixPath(name).name == asked]
    return asked if asked in names else last[0] if len(last) == 1 else None


def take(parsed: Parsed, names: Sequence[str], taken: str) -> None:
    """Note which run was taken, and which were not."""
    parsed.run = taken
    parsed.details["run_name"] = taken
    others = [name for name in names if name != taken]
    if others:
        parsed.notes.append(f"{len(names)} runs; taken: {taken}; left out: {_listed(others)} (--run NAME chooses)")


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:LISTED]) + (f", and {len(known) - LISTED} more" if len(known) > LISTED else "")


def has_rows(store: RowStore) -> bool:
    """Whether a store holds rows or a summary."""
    return bool(store.rows or store.summaries)


class StackedRuns(Generic[T]):
    """Rows of several runs in one table, told apart by a column; a table without one is a single run.

    Args:
        make: what takes the rows of one run.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._runs: dict[str, T] = {}

    def of(self, row: Mapping[str, Any]) -> T:
        """Where a row belongs."""
        stated = (str(row[k]) for k in row if str(k).lower() in RUN_COLUMNS and isinstance(row[k], (str, int)))
        name = next(stated, "") or UNNAMED
        if name not in self._runs:
            self._runs[name] = self._make()
        return self._runs[name]

    def taken(
        self, parsed: Parsed, options: Options, where: Path, holds_rows: Callable[[T], object]
    ) -> tuple[T, str | None]:
        """(the rows of one run, what `--run` still has to choose: all where no column names a run)."""
        names = [name for name, rows in self._runs.items() if holds_rows(rows)]
        if names in ([], [UNNAMED]):
            return self._runs.get(UNNAMED) or self._make(), options.run
        chosen = choose(names, options.run, where, names[0])
        take(parsed, names, chosen)
        return self._runs[chosen], None
