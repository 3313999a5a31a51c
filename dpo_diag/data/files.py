"""Raw rows of a data file: json, jsonl, parquet, csv and tsv, gzipped or not, one at a time where the format allows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from dpo_diag.data.formats import BadRow, shorten
from dpo_diag.errors import DiagError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")
_CSV_LIMIT = 2**31 - 1

RawRow = tuple[int, Mapping[str, Any] | BadRow]
"""(row number, the row or why it cannot be read): the number is the line in a jsonl file, else the place, from 1."""


def iterate_rows(path: str | Path) -> Iterator[RawRow]:
    """The rows of one file. The path and the format are checked at once, before the first row is asked for.

    Raises:
        DiagError: no such file, an unknown or empty file, or one that cannot be read as a whole.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DiagError("no such data file", where=path, hint="check data.path (it is relative to where you started)")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if _suffix(p) in SUFFIXES)
        hint = (
            f"name one of the files inside: {', '.join(inside[:5])}" if inside else "use data=hub for a dataset folder"
        )
        raise DiagError("the data path is a folder", where=path, expected="a file", hint=hint)
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        raise DiagError(
            "unknown data format", where=path, got=suffix or "no suffix", expected=", ".join(SUFFIXES) + " (or .gz)"
        )
    if path.stat().st_size == 0:
        raise DiagError("the data file is empty", where=path, expected="preference pairs")
    return _guarded(path, suffix)


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _guarded(path: Path, suffix: str) -> Iterator[RawRow]:
    readers = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".json": _json}
    try:
        yield from readers.get(suffix, _jsonl)(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DiagError(
            "the gzip file is damaged or cut off", where=path, got=error, hint="download it again"
        ) from None
    except PermissionError as error:
        raise DiagError("the data file cannot be read", where=path, got=error.strerror) from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _as_row(value: Any) -> Mapping[str, Any] | BadRow:
    if isinstance(value, Mapping):
        return value
    return BadRow("wrong type", f"the row is {type(value).__name__}, expected an object")


def _jsonl(path: Path) -> Iterator[RawRow]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, _parse_line(line)


def _parse_line(line: bytes) -> Mapping[str, Any] | BadRow:
    try:
        return _as_row(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return BadRow("undecodable line", f"not UTF-8 at byte {error.start}")
    except ValueError as error:
        return BadRow("undecodable line", f"not JSON: {shorten(str(error))}")
    except RecursionError:
        return BadRow("undecodable line", "not JSON: nested too deeply")


def _json(path: Path) -> Iterator[RawRow]:
    """One array of rows, an object that holds one, or (often, under this name) one object a line."""
    with _open(path) as file:
        first = file.readline().removeprefix(b"\xef\xbb\xbf").strip()
    row = _parse_line(first) if first.startswith(b"{") and first.endswith(b"}") else None
    # A whole object in the first line: one row a line, unless that object holds the array of rows.
    if isinstance(row, Mapping) and not _arrays_of_rows(row):
        yield from _jsonl(path)
        return
    with _open(path) as file:
        raw = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        document = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise DiagError("the file is not UTF-8", where=path, got=f"byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        hint = "one object a line belongs in a .jsonl file" if raw.lstrip().startswith(b"{") else None
        raise DiagError("the file is not JSON", where=path, got=error, hint=hint) from None
    if isinstance(document, Mapping):
        arrays = _arrays_of_rows(document)
        if len(arrays) > 1:
            raise DiagError(
                "the file holds several arrays of rows", where=path, got=", ".join(arrays), expected="one array"
            )
        document = document[arrays[0]] if arrays else [document]
    if not isinstance(document, list):
        raise DiagError(
            "the file holds no rows", where=path, got=type(document).__name__, expected="an array of objects"
        )
    for number, value in enumerate(document, start=1):
        yield number, _as_row(value)


def _arrays_of_rows(document: Mapping[str, Any]) -> list[str]:
    """Keys whose value is a list of objects that look like rows (an implicit-prompt row's own lists are messages)."""
    return [
        key
        for key, value in document.items()
        if isinstance(value, list)
        and value
        and all(isinstance(v, Mapping) for v in value)
        and any("chosen" in v or "rejected" in v for v in value)
    ]


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source: Any = io.BytesIO(_open(path).read()) if path.name.lower().endswith(".gz") else path
    try:
        with pq.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise DiagError("the parquet file cannot be read", where=path, got=shorten(str(error))) from None


def _csv(path: Path) -> Iterator[RawRow]:
    before = csv.field_size_limit(_CSV_LIMIT)  # the default, 128 KiB, is shorter than some conversations
    try:
        with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, delimiter="\t" if _suffix(path) == ".tsv" else ",", strict=True)
            number = 0
            while True:
                number += 1
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield number, BadRow("undecodable line", f"line {reader.line_num}: {error}")
                    continue
                if None in row or None in row.values():
                    got = sum(value is not None for key, value in row.items() if key is not None)
                    got += len(row.get(None) or ())
                    expected = len(reader.fieldnames or ())
                    yield number, BadRow("wrong number of cells", f"line {reader.line_num}: {got}, expected {expected}")
                else:
                    yield number, row
    except UnicodeDecodeError as error:
        raise DiagError("the file is not UTF-8", where=path, got=f"byte {error.start}") from None
    finally:
        csv.field_size_limit(before)
