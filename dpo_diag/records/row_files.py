"""THE reader of row files: JSON lines, a JSON document, CSV, TSV or Parquet, compressed or not, as dictionaries.

Used for preference pairs, for tables of log-probs, for scores. The content decides the format, the name where it does
not: an array begins with "[", Parquet with "PAR1". Everything but a JSON document is read row by row. A row that cannot
be read never stops the others: it comes as a `BadRow`, which says why.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json, repeated_keys
from dpo_diag.errors import DiagError
from dpo_diag.records.json_documents import BROKEN, SeveralArrays, is_one_row, rows_in, values_in
from dpo_diag.records.json_tables import NAMELESS, WITH_NAMES, nameless
from dpo_diag.records.text_files import Skipped, head_of, lines, pieces, whole

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")
"""Names by which a row file is known, also with .gz, .bz2 or .xz behind them."""
AS_UTF8 = "save it as UTF-8: iconv -f LATIN1 -t UTF-8 FILE > NEW"
_COMPRESSED = (".gz", ".bz2", ".xz")
_DELIMITERS = ",\t;|"
_LONGEST_CELL = 2**31 - 1  # the csv module's own limit, 128 KiB, is shorter than some conversations
_BATCH = 4096


class BadRow(Exception):
    """Why a row cannot be used: `why`, a short fixed phrase (rows are counted by it), `detail`, what stood there.

    `hint`, if any, says what the user can do about all rows with this `why`.
    """

    def __init__(self, why: str, detail: str = "", hint: str = "") -> None:
        super().__init__(why)
        self.why, self.detail, self.hint = why, detail, hint

    def __str__(self) -> str:
        return self.detail or self.why


Row = tuple[int, Mapping[str, Any] | BadRow]
"""(number, the row or why it cannot be read): the number is the line where the format has lines, else the place."""


def suffix_of(path: Path) -> str:
    """The suffix below a compression's: ".jsonl" of "pairs.jsonl.gz"; "" without one."""
    name = path.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def read_rows(path: Path, skipped: Skipped | None = None) -> Iterator[Row]:
    """Every row of a file, in order, numbered from 1.

    Args:
        skipped: takes the damage of a file that breaks off (a cut download), whose rows before the break are kept.
            Without it damage is an error.

    Raises:
        DiagError: the file cannot be opened or read as a whole (a broken array or Parquet file), holds several arrays
            of rows, or, without `skipped`, is damaged or not UTF-8.
    """
    head, suffix = head_of(path), suffix_of(path)
    first = head.lstrip()[:1]
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return _parquet(path)
    if first == b"[" or (first == b"{" and _goes_on(head)):
        return _document(path, skipped)
    if suffix in (".jsonl", ".ndjson") or (first == b"{" and suffix != ".json"):
        return json_lines(path, skipped)
    if suffix == ".json" or first == b"{":
        return json_lines(path, skipped) if _one_row_a_line(path) else _document(path, skipped)
    return _csv(path, skipped)


def readable_rows(path: Path, skipped: Skipped) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows that can be read; what cannot goes on the list."""
    for number, row in read_rows(path, skipped):
        if isinstance(row, BadRow):
            skipped.add(number, str(row))
        else:
            yield number, row


def parse_row(text: bytes) -> Mapping[str, Any] | BadRow:
    """One line of JSON as a row."""
    try:
        return as_row(parse_json(text.decode()))
    except UnicodeDecodeError as error:
        return BadRow("undecodable line", f"not UTF-8 at byte {error.start}", AS_UTF8)
    except ValueError as error:
        return BadRow("undecodable line", f"not JSON: {_short(error)}")


def twice(keys: Iterable[str]) -> BadRow | None:
    """Why a row with these `repeated_keys` is left out: which of the values is meant, nobody can say. None for none."""
    for key in keys:
        return BadRow("a key that stands twice", f"a key that stands twice: {_short(key)}", "keep one of them")
    return None


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, n in Counter(names).items() if n > 1]


def _refuse_twice(names: Iterable[str], path: Path) -> None:
    for name in names:
        raise DiagError("a name that stands twice", where=path, got=_short(name), hint="keep one of them")


def _short(error: object) -> str:
    """A library's own words, on one line of ASCII: they can quote the file."""
    return ascii(" ".join(str(error).split()))[1:-1][:80]


def as_row(value: Any) -> Mapping[str, Any] | BadRow:
    """A value of JSON as a row."""
    if isinstance(value, (Mapping, BadRow)):
        return twice(repeated_keys(value)) or value
    return BadRow("wrong type", f"the row is {type(value).__name__}, expected an object")


def json_lines(path: Path, skipped: Skipped | None) -> Iterator[Row]:
    """One object a line, or objects one after another that are written over several lines each."""
    if _goes_on(head_of(path)):
        yield from json_values(whole(path, skipped).decode("utf-8", "replace"))
        return
    for number, text in lines(path, skipped):
        if text.strip():
            yield number, parse_row(text)


def json_values(text: str, begin: re.Pattern[str] | None = None) -> Iterator[Row]:
    """Objects one after another, numbered by the line on which each begins; `begin` as in `values_in`."""
    for number, value in values_in(text, begin):
        yield number, BadRow("undecodable line", "a row is cut off or broken") if value is BROKEN else as_row(value)


def _one_row_a_line(path: Path) -> bool:
    """Whether a .json file's first line is a whole row, and not an object that holds the array of rows."""
    first = next(lines(path, Skipped()), (1, b""))[1].strip()
    try:
        row = parse_json(first) if first.startswith(b"{") and first.endswith(b"}") else None
    except ValueError:
        return False
    return isinstance(row, Mapping) and is_one_row(row)


def _goes_on(head: bytes) -> bool:
    """Whether the first object is written over several lines: its first one ends where no object can."""
    return head.lstrip().split(b"\n", 1)[0].rstrip().endswith((b"{", b"[", b","))


def _document(path: Path, skipped: Skipped | None) -> Iterator[Row]:
    """One array of rows, an object that holds one, or rows written over several lines."""
    try:
        text = whole(path, skipped).decode()
    except UnicodeDecodeError as error:
        raise DiagError("the file is not UTF-8", where=path, got=f"byte {error.start}", hint=AS_UTF8) from None
    try:
        document = parse_json(text)
    except ValueError as error:
        values = list(json_values(text)) if text.lstrip().startswith("{") else []
        if sum(not isinstance(value, BadRow) for _, value in values) < 2:
            hint = "one object a line belongs in a .jsonl file" if values else None
            raise DiagError("the file is not JSON", where=path, got=_short(error), hint=hint) from None
        yield from values
        return
    if nameless(document):
        raise DiagError(NAMELESS, where=path, expected="an array of objects", hint=WITH_NAMES)
    try:
        rows = rows_in(document)
    except SeveralArrays as several:
        expected = "one array: write it into a file of its own"
        raise DiagError("the file holds several arrays of rows", where=path, got=several, expected=expected) from None
    if rows is None:
        raise DiagError(
            "the file holds no rows", where=path, got=type(document).__name__, expected="an array of objects"
        )
    _refuse_twice(repeated_keys(document, besides=rows), path)
    for number, value in enumerate(rows, start=1):
        yield number, as_row(value)


def parquet_columns(path: Path) -> list[str]:
    """Names of a Parquet file's columns; none where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        return []


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    compressed = path.name.lower().endswith(_COMPRESSED)
    try:
        with pq.ParquetFile(io.BytesIO(whole(path)) if compressed else path) as file:
            number = 0
            _refuse_twice(_repeated(file.schema_arrow.names), path)
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DiagError(
            "the Parquet file cannot be read", where=path, got=_short(error), hint="write it again"
        ) from error


def _csv(path: Path, skipped: Skipped | None) -> Iterator[Row]:
    """Rows under a header, by the delimiter that the header holds most of; a tab where the file is called .tsv."""
    header_line = head_of(path).split(b"\n", 1)[0].decode("utf-8", "replace")
    delimiter = "\t" if suffix_of(path) == ".tsv" else max(_DELIMITERS, key=header_line.count)
    text = io.TextIOWrapper(
        io.BufferedReader(_Stream(pieces(path, skipped))),
        encoding="utf-8", errors="strict" if skipped is None else "replace", newline="",
    )  # fmt: skip
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        # Zero bytes are what a full disk or a crash leaves; the csv module refuses them.
        reader = csv.reader((line.replace("\0", "") for line in text), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, BadRow("undecodable line", f"not CSV: {error}")
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _refuse_twice(_repeated(filter(None, header)), path)
            elif len(cells) != len(header):
                yield reader.line_num, BadRow("wrong number of cells", f"{len(cells)} cells, expected {len(header)}")
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except UnicodeDecodeError as error:
        raise DiagError("the file is not UTF-8", where=path, got=f"byte {error.start}", hint=AS_UTF8) from None
    finally:
        csv.field_size_limit(before)


class _Stream(io.RawIOBase):
    """An iterator of bytes as a file, for the csv module."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._source, None)
            if piece is None:
                return 0
            self._rest = piece
        n = min(len(buffer), len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        return n
