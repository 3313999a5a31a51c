"""Many small files of one table and rank into few, while the run goes on and at its end, and without them cut.

Every change is one new file that names what it replaces (`records.parts`), and then the removal of that: killed at any
moment, a reader sees each row once, and the next writer removes what is left. Nothing is ever written over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from dpo_diag.errors import DiagError
from dpo_diag.records.files import MERGED, Part, part_of, write_parquet
from dpo_diag.records.parts import Merged, listed, visible
from dpo_diag.records.schemas import Table
from dpo_diag.records.tables import read_part

MANY = 64
"""Files of its own that a writer has closed before it merges them, while the run goes on."""
FEW = 16
"""As many are merged at its end."""
LARGE = 4 << 20
"""Bytes of a file that is merged no further: a file of tokens of this size has about a million rows."""
LOCK = ".records.r{rank}.lock"
"""In the run folder, while files change: processes of one launch that write under one rank take turns."""
PATIENCE = 30.0
"""Seconds that a writer waits for its turn: a merge takes less than one. Then it writes all the same."""


class Parts:
    """The files of one table that one rank has written, for writing.

    Args:
        run: the run folder.
        table: which table.
        rank: whose files.
    """

    def __init__(self, run: Path, table: Table, rank: int) -> None:
        self.folder, self.table, self.rank = run / table.name, table, rank
        self._lock = FileLock(run / LOCK.format(rank=rank))
        self._homes: dict[str, Path] = {}
        """Name of a part -> the merged file that holds it."""
        self._closed: set[str] = set()
        """Names of the files that are not merged."""
        self._due = MANY
        self._seen: set[str] | None = None
        """Names of the merged files that `_homes` knows."""

    def write(self, part: Part, rows: pa.Table) -> Path:
        """Write one part, in place of one of the same name, wherever that stands now; returns the file."""
        path = self.folder / part.name
        with self._alone(PATIENCE):
            # What another writer merged would hide a file of the same name.
            if self._seen != self._merged_names():
                self._look()
            if part.name in self._homes:
                return self._written_again(part, rows)
            write_parquet(path, rows)
            self._closed.add(part.name)
            if len(self._closed) >= self._due:
                self.merge()
        return path

    def rows(self, part: Part) -> pa.Table | None:
        """The rows of a part that was written before, wherever they stand now; None where there are none."""
        with self._alone(PATIENCE):
            self._look()
            path = self._homes.get(part.name, self.folder / part.name)
            blocks = self._blocks(path) if path.is_file() else []
        return next((rows for name, rows in blocks if name == part.name), None)

    def merge(self, *, at_end: bool = False) -> None:
        """Merge the files, if there are many; what cannot be merged stays as it is.

        While the run goes on a merged file is merged again only with as many bytes as half of its own: few files, and
        each row written a few times. `at_end`: all that are not large.
        """
        least = FEW if at_end else MANY
        self._due = len(self._closed) + MANY
        if len(self._own()) < least:
            return
        # A full disk, a damaged file: the rows are where they were.
        with self._alone(0.0) as alone, suppress(OSError, pa.ArrowException, DiagError):
            if not alone:
                return  # another writer is at it
            self._look()
            files = [(part, path, path.stat().st_size) for part, path in self._own()]
            small = [file for file in files if file[2] < LARGE]
            if len(small) >= least:
                for group in _groups(small if at_end else _recent(small)):
                    self._replace([block for path in group for block in self._blocks(path)], group)
            self._look()
            self._due = len(self._closed) + MANY

    def cut_after(self, step: int) -> None:
        """Remove the rows of later steps."""
        if not self._own():
            return
        with self._alone(PATIENCE):
            self._look()
            for part, path in self._own():
                if part.last <= step:
                    continue
                blocks = [] if part.first > step else [_cut(name, rows, step) for name, rows in self._blocks(path)]
                self._replace(blocks, [path])
            self._look()

    @contextmanager
    def _alone(self, seconds: float) -> Iterator[bool]:
        """Whether no other writer of this rank changes files meanwhile: not known where the system has no locks."""
        try:
            self._lock.acquire(timeout=seconds)
        except (OSError, NotImplementedError):  # of which filelock's Timeout is one
            yield False
            return
        try:
            yield True
        finally:
            self._lock.release()

    # ---- one change ----

    def _written_again(self, part: Part, rows: pa.Table) -> Path:
        home = self._homes[part.name]
        blocks = [(name, old) for name, old in self._blocks(home) if name != part.name]
        return self._replace([*blocks, (part.name, rows)], [home])

    def _replace(self, blocks: list[tuple[str, pa.Table]], old: list[Path]) -> Path:
        """A new merged file of these blocks takes the place of `old`; returns it (the last of `old` for no rows)."""
        blocks = [(name, rows) for name, rows in blocks if rows.num_rows]
        # First what could not be removed before, and which the files that go now have hidden.
        gone = [n for path in old for n in _merged(path).replaces if (self.folder / n).exists()]
        gone += [path.name for path in old]
        path = old[-1]
        if not blocks:
            # Without a new file to hide it, one that cannot be removed would be seen again.
            while gone and self._removed(gone[0]):
                gone.pop(0)
        if gone:
            parts = [part for name in [n for n, _ in blocks] or gone if (part := part_of(Path(name)))]
            number = 1 + max((p.number for p, _ in listed(self.folder) if p.rank == self.rank), default=0)
            first, last = min(p.first for p in parts), max(p.last for p in parts)
            path = self.folder / Part(first, last, f"{MERGED}{number}", self.rank).name
            merged = Merged(tuple((name, rows.num_rows) for name, rows in blocks), tuple(gone))
            tables = [rows for _, rows in blocks] or [self.table.schema.empty_table()]
            table = pa.concat_tables(tables).unify_dictionaries()
            write_parquet(path, table.replace_schema_metadata(merged.to_footer()))
            self._homes |= {name: path for name, _ in blocks}
        self._remove(gone)
        self._seen = self._merged_names()
        return path

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._removed(name)

    def _removed(self, name: str) -> bool:
        """Whether a file is gone now: one that is being read cannot be removed everywhere, and goes next time."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except PermissionError:
            return False
        return True

    # ---- what is there ----

    def _own(self) -> list[tuple[Part, Path]]:
        return [(part, path) for part, path in visible(self.folder) if part.rank == self.rank]

    def _look(self) -> None:
        """What is merged and what is not; finishes the removals of a writer that was killed."""
        own, self._homes = self._own(), {}
        self._closed = {path.name for part, path in own if not part.is_merged}
        there = {path.name for part, path in listed(self.folder) if part.rank == self.rank}
        for part, path in own:
            if part.is_merged:
                merged = _merged(path)
                self._remove(there.intersection(merged.replaces))
                self._homes |= dict.fromkeys((*merged.replaces, *(name for name, _ in merged.blocks)), path)
        self._seen = self._merged_names()

    def _merged_names(self) -> set[str]:
        """Of this rank, by their names alone."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return set()
        return {n for n in names if f".{MERGED}" in n and n.endswith(f".r{self.rank}.parquet")}

    def _blocks(self, path: Path) -> list[tuple[str, pa.Table]]:
        """(name of a part, its rows) in a file."""
        rows = read_part(path, self.table, self.table.names, {})
        found, at = [], 0
        for name, n in _merged(path).blocks or ((path.name, rows.num_rows),):
            found.append((name, rows.slice(at, n)))
            at += n
        return found


def _merged(path: Path) -> Merged:
    part = part_of(path)
    return (part and part.is_merged and Merged.of(path)) or Merged((), ())


def _cut(name: str, rows: pa.Table, step: int) -> tuple[str, pa.Table]:
    """The rows up to a step, and the name that a file of them has."""
    kept, part = rows.filter(pc.less_equal(rows.column("step"), step)), part_of(Path(name))
    if part is None or kept.num_rows in (0, rows.num_rows):
        return name, kept
    return part._replace(last=pc.max(kept.column("step")).as_py()).name, kept


Sized = tuple[Part, Path, int]


def _recent(files: list[Sized]) -> list[Sized]:
    """The files that are not merged, and merged ones, the smallest first, as long as one is no larger than twice what
    is taken already."""
    chosen = [f for f in files if not f[0].is_merged]
    total = sum(size for _, _, size in chosen)
    for file in sorted((f for f in files if f[0].is_merged), key=lambda f: f[2]):
        if file[2] > 2 * total:
            break
        chosen.append(file)
        total += file[2]
    return [f for f in files if f in chosen]


def _groups(files: list[Sized]) -> list[list[Path]]:
    """In their order, as many together as make a large file; one alone is left as it is."""
    groups: list[list[Path]] = [[]]
    total = 0
    for _, path, size in files:
        if total + size > LARGE:
            groups.append([])
            total = 0
        groups[-1].append(path)
        total += size
    return [group for group in groups if len(group) > 1]
