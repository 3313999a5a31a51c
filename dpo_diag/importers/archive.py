"""Zip archives that people hand over (a downloaded output folder): extracted with care, then read as a folder."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from dpo_diag.errors import DiagError
from dpo_diag.records.text_files import PIECE, Skipped

MAX_ZIP_BYTES = 8 << 30
MAX_ZIP_FILES = 10_000


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
            name = PurePosixPath(member.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or (member.external_attr >> 28) == 0xA:
                skipped.add(None, "an archive member that points outside", file=str(name))
                continue
            destination = target.joinpath(*name.parts)
            try:
                destination.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, destination.open("wb") as out:
                    left = member.file_size
                    while left > 0 and (piece := source.read(min(PIECE, left))):
                        out.write(piece)
                        left -= len(piece)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
                skipped.add(None, f"an archive member cannot be read: {error}", file=str(name))
