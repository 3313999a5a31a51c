"""Work that several processes share: checkpoints x parts of a set, one finished file each, so that any start, on any
machine, does only what is missing."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dpo_diag.documents import parse_json
from dpo_diag.models.checkpoints import Checkpoint
from dpo_diag.records.files import replacing, to_label
from dpo_diag.records.pair_id import content_hash
from dpo_diag.records.remote import is_url, opened

_ASSEMBLED = "assembled.json"


@dataclass(frozen=True)
class Item:
    """One checkpoint on rows `first` to `last` (exclusive) of a set; `name` is the file of what was measured."""

    checkpoint: Checkpoint
    first: int
    last: int
    name: str

    def __str__(self) -> str:
        return f"{self.checkpoint.label}, {self.first + 1} to {self.last}"


def work_list(
    checkpoints: Sequence[Checkpoint], ids: Sequence[str], size: int, settings: Mapping[str, Any]
) -> list[Item]:
    """Every checkpoint x every `size` rows. A file's name holds a hash of all that decides what is in it: the
    checkpoint, the rows (by `ids`), the settings; what was measured otherwise is not taken for it."""
    items = []
    for checkpoint in checkpoints:
        for first in range(0, len(ids), size):
            part = list(ids[first : first + size])
            key = content_hash([checkpoint.path, dict(settings), part])
            name = f"{to_label(checkpoint.model)}-{checkpoint.step:08d}-{first:07d}-{key}.zip"
            items.append(Item(checkpoint, first, first + len(part), name))
    return items


class Shelf:
    """Where finished items lie: a folder, or a URL that fsspec opens (s3://..., gs://..., memory://...).

    A file is there whole or not at all. In a folder an item can be claimed, for as long as the process lives.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = str(place)
        self.shared = not is_url(self.place)

    def names(self) -> set[str]:
        """The finished items."""
        fs, path = opened(self.place)
        fs.invalidate_cache()
        try:
            return {Path(entry).name for entry in fs.ls(path, detail=False) if str(entry).endswith(".zip")}
        except FileNotFoundError:
            return set()

    def put(self, name: str, data: bytes) -> None:
        """Add a finished item."""
        if self.shared:
            with replacing(Path(self.place) / name) as temporary:
                temporary.write_bytes(data)
            return
        fs, path = opened(self.place)
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(f"{path}/{name}", data)

    def get(self, name: str) -> bytes:
        """A finished item."""
        fs, path = opened(self.place)
        data: bytes = fs.cat_file(f"{path}/{name}")
        return data

    @contextmanager
    def claim(self, item: Item) -> Iterator[bool]:
        """Whether this process may do the item: no other that lives is at it. Ends with the block or the process."""
        lock = FileLock(Path(self.place) / "claims" / f"{item.name}.lock")
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield item.name not in self.names()
        finally:
            lock.release()

    def is_assembled(self, items: Sequence[Item]) -> bool:
        """Whether a run was put together from these, after which they were removed."""
        with suppress(OSError, ValueError):
            fs, path = opened(self.place)
            return {item.name for item in items} <= set(parse_json(fs.cat_file(f"{path}/{_ASSEMBLED}")))
        return False

    def clear(self, items: Sequence[Item]) -> None:
        """Remove everything: the run holds it now. A line stays behind for processes that still ask for `items`."""
        fs, path = opened(self.place)
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(f"{path}/{_ASSEMBLED}", json.dumps([item.name for item in items]).encode())
        for name in self.names():
            with suppress(FileNotFoundError):
                fs.rm_file(f"{path}/{name}")
        if self.shared:
            shutil.rmtree(Path(self.place) / "claims", ignore_errors=True)


def packed(folder: Path) -> bytes:
    """A run folder as one file; its Parquet is compressed already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def unpacked(data: bytes, folder: Path) -> Path:
    """The run folder again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)
    return folder
