"""Opening what people hand over: plain, gzip, bz2 or xz files, zip archives, UTF-8/16/32 with or without a mark.

Everything is streamed. A file that breaks off in the middle (a cut download, a killed job) yields what came before the
break, and the break is reported through `Trouble` instead of raised.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dpo_diag.errors import DiagError

CHUNK = 1 << 20
MAX_LINE = 64 << 20
MAX_WHOLE = 2 << 30
MAX_ZIP_BYTES = 8 << 30
MAX_ZIP_FILES = 10_000
SKIPPED_LISTED = 1000


@dataclass
class Trouble:
    """What could not be read, by line: the first `SKIPPED_LISTED` are listed, all are counted by reason."""

    listed: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def skip(self, line: int | None, why: str, file: str | None = None) -> None:
        self.count += 1
        if len(self.listed) < SKIPPED_LISTED:
            row: dict[str, Any] = {"line": line, "why": why}
            if file:
                row["file"] = file
            self.listed.append(row)
        reason = why.split(":")[0][:80]
        if reason in self.reasons or len(self.reasons) < 100:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def extend(self, other: Trouble, file: str | None = None) -> None:
        for row in other.listed[: max(0, SKIPPED_LISTED - len(self.listed))]:
            self.listed.append({**row, "file": file} if file and "file" not in row else dict(row))
        self.count += other.count
        for why, n in other.reasons.items():
            self.reasons[why] = self.reasons.get(why, 0) + n


def head_of(path: Path, size: int = 1 << 16) -> bytes:
    """The first bytes of a file, decompressed and in UTF-8."""
    out = b""
    for piece in chunks(path, Trouble(), size=size):
        out += piece
        if len(out) >= size:
            break
    return out[:size]


def chunks(path: Path, trouble: Trouble, size: int = CHUNK) -> Iterator[bytes]:
    """Decompressed UTF-8 bytes of a file, in pieces; other encodings with a byte order mark are transcoded."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DiagError("cannot open the file", where=path, got=error.strerror or error) from error
    with file:
        start = file.read(6)
        file.seek(0)
        raw: Iterator[bytes] = iter(lambda: file.read(size), b"")
        if start[:2] == b"\x1f\x8b":
            raw = _inflate(raw, trouble, lambda: zlib.decompressobj(31), zlib.error)
        elif start[:3] == b"BZh":
            raw = _inflate(raw, trouble, bz2.BZ2Decompressor, OSError)
        elif start == b"\xfd7zXZ\x00":
            raw = _inflate(raw, trouble, lzma.LZMADecompressor, lzma.LZMAError)
        try:
            yield from _as_utf8(raw)
        except OSError as error:
            trouble.skip(None, f"the file cannot be read further: {error.strerror or error}")


def _inflate(
    raw: Iterator[bytes], trouble: Trouble, new: Callable[[], Any], failure: type[Exception]
) -> Iterator[bytes]:
    """Decompress member after member; a broken or unfinished one is reported, what it gave before is kept."""
    engine, seen = new(), False
    for piece in raw:
        rest = memoryview(piece)
        while rest:
            try:
                # What one call had decompressed before a break is lost: small calls lose little.
                out, rest, seen = engine.decompress(rest[:4096]), rest[4096:], True
            except (failure, EOFError, ValueError) as error:
                trouble.skip(None, f"compressed data are broken: {error}")
                return
            if out:
                yield out
            if engine.eof:
                rest = memoryview((engine.unused_data + bytes(rest)).lstrip(b"\0"))
                engine, seen = new(), False
    if seen:
        trouble.skip(None, "compressed data end early: what came before the end was read")


def _as_utf8(raw: Iterator[bytes]) -> Iterator[bytes]:
    first = next(raw, b"")
    encoding = None
    if first.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif len(first) >= 8 and first[1::2][:40].count(0) == len(first[1::2][:40]) and 0 not in first[0::2][:40]:
        encoding = "utf-16-le"  # PowerShell's redirection without a mark
    if encoding is None:
        yield first.removeprefix(codecs.BOM_UTF8)
        yield from raw
        return
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    yield decoder.decode(first).encode("utf-8", "replace")
    for piece in raw:
        yield decoder.decode(piece).encode("utf-8", "replace")
    yield decoder.decode(b"", final=True).encode("utf-8", "replace")


def lines(path: Path, trouble: Trouble) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end); a line beyond 64 MiB is reported and passed over."""
    number, rest, dropping = 0, b"", False
    for piece in chunks(path, trouble):
        parts = (rest + piece).split(b"\n")
        rest = parts.pop()
        for part in parts:
            number += 1
            if dropping:
                dropping = False
                continue
            yield number, part.rstrip(b"\r")
        if len(rest) > MAX_LINE:
            if not dropping:
                trouble.skip(number + 1, "a line longer than 64 MiB")
            dropping, rest = True, b""
    if rest and not dropping:
        yield number + 1, rest.rstrip(b"\r")


def whole(path: Path, trouble: Trouble) -> bytes:
    """The whole content; refuses more than 2 GiB."""
    parts, total = [], 0
    for piece in chunks(path, trouble):
        total += len(piece)
        if total > MAX_WHOLE:
            raise DiagError("too large for one JSON document", where=path, got=f"> {MAX_WHOLE} bytes")
        parts.append(piece)
    return b"".join(parts)


def is_zip(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except OSError:
        return False


def unzip(path: Path, target: Path, trouble: Trouble) -> None:
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
                trouble.skip(None, "an archive member that points outside", file=str(name))
                continue
            destination = target.joinpath(*name.parts)
            try:
                destination.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, destination.open("wb") as out:
                    left = member.file_size
                    while left > 0 and (piece := source.read(min(CHUNK, left))):
                        out.write(piece)
                        left -= len(piece)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
                trouble.skip(None, f"an archive member cannot be read: {error}", file=str(name))
