"""The bytes of a text file, however it is packed or encoded: gzip, bz2, xz; UTF-8, 16 and 32 with or without a mark.

Everything is streamed. A file that breaks off in the middle (a cut download, a killed job) is an error where the caller
wants all of it; a caller that hands over a `Skipped` list gets what came before the break, and the break on the list.
"""

from __future__ import annotations

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_diag.documents import regular, repeated_keys
from dpo_diag.errors import DiagError

PIECE = 1 << 20
MAX_LINE = 64 << 20
MOST_TIMES = 100
UNPACKED_FREELY = 32 << 20
"""Bytes from which a file that unpacks to more than `MOST_TIMES` its size is no log: text packs to a tenth."""
MAX_WHOLE = 2 << 30
SKIPPED_LISTED = 1000


@dataclass
class Skipped:
    """What could not be read, by line: the first `SKIPPED_LISTED` are listed, all are counted, and by reason."""

    listed: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, line: int | None, why: str, file: str | None = None) -> None:
        """Note a line (None: the file itself) with the reason; `file` where several files are read."""
        self.count += 1
        if len(self.listed) < SKIPPED_LISTED:
            self.listed.append({"line": line, "why": why, **({"file": file} if file else {})})
        # The part before the colon is fixed, what follows quotes the source; a hostile file must not grow the table.
        reason = why.split(":")[0][:80]
        if reason in self.reasons or len(self.reasons) < 100:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def add_repeated(self, document: Any, line: int | None = None, file: str | None = None, rows: Any = None) -> None:
        """Note each key that a document holds twice, but in its rows, and of which the last value is used."""
        for key, n in repeated_keys(document, besides=rows).items():
            again = f", in {n} objects" if n > 1 else ""
            self.add(line, f"a key that stands twice, of which the last counts: {key[:80]!a}{again}", file)

    def extend(self, other: Skipped, file: str | None = None) -> None:
        """Take over another list, its rows marked with a file's name if one is given."""
        for row in other.listed[: max(0, SKIPPED_LISTED - len(self.listed))]:
            self.listed.append({**row, "file": file} if file and "file" not in row else dict(row))
        self.count += other.count
        for why, n in other.reasons.items():
            self.reasons[why] = self.reasons.get(why, 0) + n


def head_of(path: Path, size: int = 1 << 16) -> bytes:
    """The first bytes of a file, decompressed and in UTF-8; fewer where the file is shorter or damaged."""
    out = b""
    for piece in pieces(path, Skipped(), size):
        out += piece
        if len(out) >= size:
            break
    return out[:size]


def pieces(path: Path, skipped: Skipped | None = None, size: int = PIECE) -> Iterator[bytes]:
    """The file's bytes, decompressed and in UTF-8, piece after piece; other encodings are known by their mark.

    Raises:
        DiagError: the file cannot be opened; without `skipped` also where it is damaged or cut off.
    """
    try:
        file = regular(path).open("rb")
    except OSError as error:
        raise DiagError("cannot open the file", where=path, got=error.strerror or error) from error

    def broken(why: str) -> None:
        if skipped is None:
            raise DiagError("the compressed file is damaged or cut off", where=path, got=why, hint="download it again")
        skipped.add(None, why)

    with file:
        start = file.read(6)
        file.seek(0)
        raw: Iterator[bytes] = iter(lambda: file.read(size), b"")
        if start[:2] == b"\x1f\x8b":
            raw = _inflate(raw, broken, lambda: zlib.decompressobj(31), zlib.error)
        elif start[:3] == b"BZh":
            raw = _inflate(raw, broken, bz2.BZ2Decompressor, OSError)
        elif start == b"\xfd7zXZ\x00":
            raw = _inflate(raw, broken, lzma.LZMADecompressor, lzma.LZMAError)
        elif skipped is None and start and path.name.lower().endswith((".gz", ".bz2", ".xz")):
            broken("it does not begin as a compressed file")
        try:
            yield from _as_utf8(raw)
        except OSError as error:
            if skipped is None:
                raise DiagError("the file cannot be read", where=path, got=error.strerror or error) from error
            skipped.add(None, f"the file cannot be read further: {error.strerror or error}")


def _inflate(
    raw: Iterator[bytes], broken: Callable[[str], None], new: Callable[[], Any], failure: type[Exception]
) -> Iterator[bytes]:
    """Decompress member after member; a broken or unfinished one is reported, what it gave before is kept."""
    engine, seen, packed, unpacked = new(), False, 0, 0
    for piece in raw:
        packed += len(piece)
        rest = memoryview(piece)
        while rest:
            # What one call had decompressed before a break is lost: small calls lose little.
            part, rest, seen = rest[:4096], rest[4096:], True
            while True:
                try:
                    out = engine.decompress(part, PIECE) if hasattr(engine, "needs_input") else engine.decompress(part)
                except (failure, EOFError, ValueError) as error:
                    broken(f"compressed data are broken: {error}")
                    return
                if out:
                    yield out
                unpacked += len(out)
                if unpacked > max(UNPACKED_FREELY, MOST_TIMES * packed):
                    broken(f"it unpacks to more than {MOST_TIMES} times its size: if that is right, unpack it first")
                    return
                if engine.eof or getattr(engine, "needs_input", True):
                    break
                part = memoryview(b"")
            if engine.eof:
                rest = memoryview((engine.unused_data + bytes(rest)).lstrip(b"\0"))
                engine, seen = new(), False
    if seen:
        broken("compressed data end early: what came before the end was read")


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


def lines(path: Path, skipped: Skipped | None = None) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end), as `pieces` reads them; a line beyond 64 MiB counts as damage."""
    number, dropping = 0, False
    begun: list[bytes] = []  # pieces of the line that goes on, joined once: it may be long
    size = 0
    for piece in pieces(path, skipped):
        *ended, rest = piece.split(b"\n")
        for part in ended:
            number += 1
            if not dropping:
                yield number, b"".join((*begun, part)).rstrip(b"\r")
            begun, size, dropping = [], 0, False
        if dropping:
            continue
        begun.append(rest)
        size += len(rest)
        if size > MAX_LINE:
            if skipped is None:
                raise DiagError("a line longer than 64 MiB", where=path, got=f"line {number + 1}")
            skipped.add(number + 1, "a line longer than 64 MiB")
            begun, size, dropping = [], 0, True
    if size:
        yield number + 1, b"".join(begun).rstrip(b"\r")


def whole(path: Path, skipped: Skipped | None = None) -> bytes:
    """The whole content, as `pieces` reads it.

    Raises:
        DiagError: more than 2 GiB, or as `pieces`.
    """
    parts, total = [], 0
    for piece in pieces(path, skipped):
        total += len(piece)
        if total > MAX_WHOLE:
            raise DiagError("too large for one JSON document", where=path, got=f"more than {MAX_WHOLE >> 30} GiB")
        parts.append(piece)
    return b"".join(parts)
