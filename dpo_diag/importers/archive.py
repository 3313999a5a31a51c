"""Zip archives that people hand over (a downloaded output folder): extracted with care, then read as a folder."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, cast

import pyarrow as pa

from dpo_diag.errors import DiagError
from dpo_diag.records.text_files import MOST_TIMES, PIECE, UNPACKED_FREELY, Skipped

MAX_ZIP_BYTES = 8 << 30
MAX_ZIP_FILES = 10_000
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError, pa.ArrowInvalid)
"""What reading a damaged member raises."""
ZSTANDARD = 93
"""The method's number in a zip archive."""
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Before each member; its last two numbers are the sizes of name and extra field behind it."""


def is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def unzip(path: Path, target: Path, skipped: Skipped) -> None:
    """Extract an archive below `target`; members that climb out of it, links and broken ones are reported and left."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DiagError("the zip archive cannot be read", where=path, got=error, hint="zip it again") from error
    with archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        if len(members) > MAX_ZIP_FILES or sum(m.file_size for m in members) > MAX_ZIP_BYTES:
            raise DiagError("the zip archive is too large", where=path, got=f"{len(members)} files", hint="unpack it")
        for member in members:
            if member.file_size > max(UNPACKED_FREELY, MOST_TIMES * member.compress_size):
                why = f"an archive member unpacks to more than {MOST_TIMES} times its size"
                skipped.add(None, why, file=member.filename)
                continue
            name = PurePosixPath(member.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or (member.external_attr >> 28) == 0xA:
                skipped.add(None, "an archive member that points outside", file=str(name))
                continue
            destination = target.joinpath(*name.parts)
            try:
                destination.parent.mkdir(parents=True, exist_ok=True)
                with _opened(archive, member) as source, destination.open("wb") as out:
                    left = member.file_size
                    while left > 0 and (piece := source.read(min(PIECE, left))):
                        out.write(piece)
                        left -= len(piece)
            except BROKEN as error:
                skipped.add(None, f"an archive member cannot be read: {error}", file=str(name))


def _opened(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member's content. Zstandard is what Inspect compresses with, and Python's own reader cannot before 3.14."""
    if member.compress_type != ZSTANDARD or member.flag_bits & 1:
        return archive.open(member)
    file = archive.fp
    assert file is not None
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no header where the directory says one")
    name_size, extra_size = LOCAL_HEADER.unpack(header)[-2:]
    file.seek(name_size + extra_size, 1)
    packed = file.read(member.compress_size)
    return cast(IO[bytes], pa.CompressedInputStream(pa.BufferReader(packed), "zstd"))
