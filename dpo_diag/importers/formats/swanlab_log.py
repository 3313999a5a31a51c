"""SwanLab's own log (run-<id>.swanlab, version 0.8 and later), offline or not; config.yaml beside it in files/.

A header of seven bytes, then LevelDB's log framing in blocks of 32 KiB: checksum (of type and content), length, type,
content. A record is a protobuf message; only the fields of scalars and of the start are read, by their numbers: SwanLab
itself is not needed, which wants an older protobuf than others do.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_yaml
from dpo_diag.errors import DiagError
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.log_format import LogFormat, register
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.several import choose, take
from dpo_diag.importers.task_results import plain_mapping
from dpo_diag.records.text_files import Skipped

MAGIC = b":SWL"
HEADER, RECORD = struct.Struct("<4sHB"), struct.Struct("<IHB")
BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
START, SCALAR = 10, 13
"""Fields of a record; below: of a scalar (key, step, value), of a value (number), of the start (name, id)."""
KEY, STEP, VALUE, NUMBER, NAME, ID = 1, 2, 5, 1, 4, 10
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_swanlab(path: Path, options: Options) -> Parsed:
    """Read a file, or the one in a folder (`swanlog/`, `run-...`); with several `--run` names the one.

    Raises:
        DiagError: no log of SwanLab's, or several and none named.
    """
    file = path if path.is_file() else _file_in(path, options.run)
    parsed = Parsed.of("swanlab", [file], options)
    parsed.store.may_fill = False
    points: list[tuple[int, str, float]] = []
    for data in _records(file, parsed.skipped):
        try:
            record = _fields(data)
            if SCALAR in record:
                scalar = _fields(record[SCALAR])
                # A field of value 0 is not written.
                (number,) = struct.unpack("<d", _fields(scalar.get(VALUE, b"")).get(NUMBER, bytes(8)))
                points.append((int(scalar.get(STEP, 0)), scalar[KEY].decode(), number))
            elif START in record:
                start = _fields(record[START])
                name = start.get(NAME, start.get(ID, b"")).decode() or file.stem
                take(parsed, [name], name)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
            parsed.skipped.add(None, "a record is no message of SwanLab's")
    parsed.store.add_points(points)
    parsed.facts.merge(facts_from_mapping(_config(file.parent / "files" / "config.yaml", parsed), "files/config.yaml"))
    parsed.steps_from = "the metrics' own step"
    parsed.n_rows = parsed.n_read = parsed.store.rows
    parsed.details["points"] = len(points)
    return parsed


def _files(folder: Path) -> list[Path]:
    return sorted({p for pattern in ("*.swanlab", "*/*.swanlab", "*/*/*.swanlab") for p in folder.glob(pattern)})


def _file_in(folder: Path, run: str | None) -> Path:
    files = {p.stem.removeprefix("run-"): p for p in _files(folder)}
    if not files:
        raise DiagError("no run of SwanLab", where=folder, got="no .swanlab file", hint="name the file", usage=True)
    return files[choose(list(files), run, folder)]


def _config(file: Path, parsed: Parsed) -> dict[str, Any]:
    """Its values, which SwanLab wraps as {"value": ...}."""
    try:
        document = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    parsed.skipped.add_repeated(document, file=f"files/{file.name}")
    found = plain_mapping(document)
    return {str(k): v.get("value") if isinstance(v, dict) and "value" in v else v for k, v in found.items()}


def _records(file: Path, skipped: Skipped) -> Iterator[bytes]:
    """The contents of whole records; a damaged one is reported and passed over, and so is the rest of its block."""
    with file.open("rb") as opened:
        if not opened.read(HEADER.size).startswith(MAGIC):
            raise DiagError("not a log of SwanLab's", where=file, expected="a file that begins with :SWL")
        pending = b""
        while True:
            left = BLOCK - opened.tell() % BLOCK
            head = opened.read(min(RECORD.size, left))
            if len(head) < RECORD.size:
                if len(head) < min(RECORD.size, left) or left >= RECORD.size:
                    return
                continue  # the end of a block that no header fits in
            checksum, size, kind = RECORD.unpack(head)
            if kind == 0 and size == 0:
                opened.seek(left - RECORD.size, 1)
                continue
            data = opened.read(size)
            if len(data) < size:
                skipped.add(None, "the file ends inside a record")
                return
            if kind not in (FULL, FIRST, MIDDLE, LAST) or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
                skipped.add(None, "a record is damaged: wrong checksum")
                opened.seek(BLOCK - opened.tell() % BLOCK, 1)
                pending = b""
                continue
            pending = data if kind in (FULL, FIRST) else pending + data
            if kind in (FULL, LAST):
                yield pending
                pending = b""


def _fields(message: bytes) -> dict[int, Any]:
    """A message's fields by number, the last of each: numbers, or bytes."""
    found: dict[int, Any] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            found[field], at = _varint(message, at)
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError("not a field")
        if at + size > len(message):
            raise ValueError("cut")
        found[field] = message[at : at + size]
        at += size
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not a number")


register(
    LogFormat(
        name="swanlab",
        description="SwanLab's log (run-<id>.swanlab or its folder)",
        trainers=("any",),
        file_name="run-abc123.swanlab",
        order=10,
        why="begins with bytes that no other file begins with",
        sniff=lambda head: head.raw.startswith(MAGIC),
        read=read_swanlab,
        rounding=0,
        reads_folders=True,
        sniff_folder=lambda folder: bool(_files(folder)),
    )
)
