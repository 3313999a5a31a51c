"""How the files of a run folder are named and written: under a temporary name, then renamed, so that a reader never
sees half of one.

A Parquet file's name carries its first and last step, its split and the rank that wrote it
(`pairs/00000010-00000010.eval.r0.parquet`); one that many were merged into has ~ and a number for the split
(`pairs/00000001-00000640.~3.r0.parquet`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import PARQUET_KEY, ZERO, json_bytes, sealed
from dpo_diag.records.names import LONGEST, shortened
from dpo_diag.records.process import exists
from dpo_diag.text import frame_for_csv

if TYPE_CHECKING:
    import pandas as pd  # not at run time: only who writes a table needs them
    import pyarrow as pa

RUN_FILE = "run.json"
SCHEMA_VERSION = "1.1"
"""major.minor: a reader accepts every minor version of its own major version; a column that is missing is null."""
MERGED = "~"
"""Begins the label of a merged file; no split's label has it, see `to_label`."""
ROW_GROUP = 1 << 18
"""Rows that are passed over together where their steps are not asked for."""
_YOUNG = 60.0
"""Seconds since its last change for which a temporary file may be somebody's who is at it."""
_PART = re.compile(r"^(\d+)-(\d+)\.(.+)\.r(\d+)\.parquet$")


def has_checkpoint(folder: Path) -> bool:
    """Whether a training in this run folder wrote a checkpoint whole: it gets its name when all of it is written, and
    other writers write trainer_state.json last."""
    return any((folder / "checkpoints").glob("checkpoint-*/trainer_state.json"))


class Part(NamedTuple):
    """What a Parquet file's name says: its steps, its label (mostly a split), the rank that wrote it."""

    first: int
    last: int
    label: str
    rank: int

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.first:08d}-{self.last:08d}.{self.label}.r{self.rank}.parquet"

    @property
    def is_merged(self) -> bool:
        """Whether the file took the place of others, see `records.parts`."""
        return self.label.startswith(MERGED)

    @property
    def number(self) -> int:
        """Of a merged file: higher than those of the files that it replaces; 0 for any other."""
        return int(self.label.removeprefix(MERGED)) if self.is_merged else 0


def to_label(split: str) -> str:
    """A split's name as a label: anything but letters, digits, _ and - becomes %XX, a long one ends in its hash."""
    plain = re.sub(r"[^A-Za-z0-9_-]", lambda m: "".join(f"%{b:02X}" for b in m.group().encode()), split)
    return plain if len(plain) <= LONGEST else shortened(plain)


def part_of(path: Path) -> Part | None:
    """What a file's name says; None for a file that is not one of ours."""
    match = _PART.match(path.name)
    return Part(int(match[1]), int(match[2]), match[3], int(match[4])) if match else None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name at the end, or is removed after an error.

    Folders are made. A killed process leaves its temporary file behind, which `dpo-diag doctor` lists and the next
    writer of the run removes (`remove_temporary`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_temporary(folder: Path) -> None:
    """Remove what killed writers left half written in a run folder. Records have one writer, who calls this, and the
    other processes of its launch, which are there; a report or a job's own file may be somebody's who is at it."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp"), *folder.glob("*/*/.*.tmp")):
        records = ".parquet." in path.name or path.name.startswith(f".{RUN_FILE}.")
        with suppress(OSError, ValueError):  # a name that is not ours
            gone = records and not exists(int(path.name.split(".")[-2]))
            if gone or time.time() - path.stat().st_mtime > _YOUNG:
                path.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, on the disk before it takes its name: after a power cut the name holds the old bytes or the new."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, document: Any) -> None:
    """Write a document as strict JSON with its checksum, as `write_bytes` does."""
    write_bytes(path, json_bytes(document))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table for people: no spreadsheet takes a cell for a formula (`text.for_csv`). The one way to write CSV.

    Raises:
        DiagError: the place cannot be written to.
    """
    data = frame_for_csv(frame).to_csv(index=False).encode("utf-8", "backslashreplace")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # /dev/stdout, a pipe
        else:
            write_bytes(path, data)
    except OSError as error:
        hint = "name another file"
        raise DiagError("the table cannot be written", where=path, got=error.strerror, hint=hint) from error


def write_parquet(path: Path, table: pa.Table) -> None:
    """zstd Parquet with its checksum, written as `write_bytes` does; dictionaries for ids, byte-stream split for
    floats: the smallest tokens/ of what was tried."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    floats = [f.name for f in table.schema if pa.types.is_floating(f.type)]
    ids = [f.name for f in table.schema if pa.types.is_dictionary(f.type) or pa.types.is_integer(f.type)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, table.schema, compression="zstd", use_dictionary=ids, use_byte_stream_split=floats or False
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP)
        writer.add_key_value_metadata({PARQUET_KEY: ZERO})
    write_bytes(path, sealed(sink.getvalue().to_pybytes(), ".parquet"))
