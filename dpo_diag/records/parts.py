"""Which files of a table count, and in which order: a writer merges its many small ones while others read.

A merged file says in its footer what stands in it and which files it took the place of. Between the moment when it
gets its name and the removal of the last of those, both are there, for ever if the writer is killed: whoever reads
passes over what a merged file replaces, and so sees each row once.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import DamagedFile, verified
from dpo_diag.records.files import Part, part_of

T = TypeVar("T")
_FOOTER = b"dpo_diag.merged"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Merged:
    """What a merged file says of itself.

    Attributes:
        blocks: (name of the part, its rows) in the order of the rows; the names of parts that were cut are those that
            a file of what is left would have.
        replaces: names of the files whose place it took.
    """

    blocks: tuple[tuple[str, int], ...]
    replaces: tuple[str, ...]

    def to_footer(self) -> dict[bytes, bytes]:
        """As Parquet's key-value metadata: packed, since thousands of names would be larger than the rows."""
        text = json.dumps({"blocks": self.blocks, "replaces": self.replaces})
        return {_FOOTER: base64.b64encode(zlib.compress(text.encode(), 9))}

    @classmethod
    def of(cls, path: Path) -> Merged | None:
        """What a file says; None where it is no merged one, or is damaged: then it hides no other."""
        import pyarrow as pa
        import pyarrow.parquet as pq  # who asks whether a table has rows waits for it only here

        try:
            packed = (pq.read_schema(pa.py_buffer(verified(path, ""))).metadata or {}).get(_FOOTER)
            document = parse_json(zlib.decompress(base64.b64decode(packed))) if packed is not None else None
        except (DamagedFile, pa.ArrowException, OSError, ValueError, zlib.error) as error:
            if isinstance(error, FileNotFoundError):
                raise
            return None
        if document is None:
            return None
        return cls(tuple((str(n), int(rows)) for n, rows in document["blocks"]), tuple(document["replaces"]))


def listed(folder: Path) -> list[tuple[Part, Path]]:
    """A table's files in the order of their rows: by first step, merged ones first; replaced ones are among them.

    A listing is no snapshot: it can miss a file that gets its name, and then the ones that are removed for it. So it
    is taken until none of the files before has gone.
    """
    before, names = {""}, _names(folder)
    for _ in range(_ATTEMPTS):
        before, names = names, _names(folder)
        if before <= names:
            break
    found = [(part, folder / name) for name in names if (part := part_of(Path(name)))]
    return sorted(found, key=lambda f: (f[0].first, not f[0].is_merged, f[0].last, f[0].label, f[0].rank))


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def visible(folder: Path) -> list[tuple[Part, Path]]:
    """`listed` without the files that a merged one replaces."""
    found = listed(folder)
    hidden: set[str] = set()
    for part, path in found:
        # Only where one of its range is there too need a merged file be asked.
        if part.is_merged and any(_may_replace(part, other) for other, _ in found):
            merged = Merged.of(path)
            hidden.update(merged.replaces if merged else ())
    return [(part, path) for part, path in found if path.name not in hidden]


def _may_replace(merged: Part, other: Part) -> bool:
    meets = merged.first <= other.last and other.first <= merged.last
    return merged.rank == other.rank and merged != other and meets


def steady(read: Callable[[], T], folder: Path) -> T:
    """What `read` gives, which lists files and reads them; again where one is gone by then: it was merged.

    Raises:
        DiagError: files that are listed are never there, e.g. links to nothing.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return read()
        except FileNotFoundError as error:
            if attempt == _ATTEMPTS - 1:
                raise DiagError(
                    "a record file cannot be read", where=folder, got=error, hint="is it a link to nothing?"
                ) from error
    raise AssertionError("unreachable")
