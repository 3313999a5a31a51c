"""What a foreign log format is, the registry of formats, and how a file's format is recognised.

A format is one file in `formats/` (or in a plugin) that calls `register`. Formats are asked in the order of their
`order`: what nothing else can be comes first, what anything could be comes last.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json, parse_json_at
from dpo_diag.errors import DiagError
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.records.row_files import parquet_columns
from dpo_diag.records.text_files import head_of
from dpo_diag.registry import Registry

HEAD_BYTES = 1 << 16
ROW_BYTES = 4 << 20
"""Of a JSON row that is longer than the head: thousands of columns."""
METRIC_KEY = re.compile(
    rb"['\"](?:additional_log_)?(?:(?:train|eval|val|validation|test)[_/.][\w/.-]*?)?(?:(?:dpo_|nll_)?loss['\"]|loss/|"
    rb"rewards?(?:_train|_eval\w*)?/|logps(?:_train|_eval\w*)?/|log_probs/|train_runtime['\"]|grad_norm['\"]|"
    rb"chosen_rewards?['\"])"
)
"""A quoted key that only a row of training metrics has."""
STEP_COLUMNS = ("step", "epoch", "loss", "value", "_step", "iteration", "chosen_sum_logp")
"""Words by which the first line of a table is known as its header."""


class Head:
    """The beginning of a file, in the forms in which a `sniff` reads it.

    Attributes:
        path: the file.
        raw: its first 64 bytes, as stored.
        data: its first 64 KiB, or its first JSON row where that is longer, decompressed and in UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = head_of(path, HEAD_BYTES)  # first: a file that cannot be opened is one error there
        if len(self.data) == HEAD_BYTES and b"\n" not in self.data and self.is_json:
            self.data = head_of(path, ROW_BYTES).partition(b"\n")[0]
            del self.text
        with path.open("rb") as file:
            self.raw = file.read(64)

    @cached_property
    def text(self) -> str:
        """`data` as text, without leading blanks."""
        return self.data.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")

    @property
    def is_json(self) -> bool:
        """Whether it begins as a JSON object or an array of rows; not as `[rank0]: ...` or `[INFO] ...`."""
        return self.text.startswith("{") or re.match(r"\[\s*[{\]]", self.text) is not None

    @cached_property
    def document(self) -> Any:
        """The first JSON value: a document or the first row; None where it is broken or longer than the head."""
        if not self.is_json:
            return None
        try:
            return parse_json_at(self.text)[0]
        except ValueError:
            return None

    @cached_property
    def row(self) -> Mapping[str, Any] | None:
        """The first row that can be read: of JSON lines, even if the first ones are broken, or of an array."""
        if isinstance(self.document, Mapping):
            return self.document
        if isinstance(self.document, list):
            return next((row for row in self.document if isinstance(row, Mapping)), None)
        lines = self.text.split("\n") if self.is_json else []
        if not lines or not lines[0].rstrip().endswith("}"):
            return None
        for line in lines[1:20]:
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, Mapping):
                return row
        return None

    @cached_property
    def columns(self) -> list[str]:
        """The cells of the first line, where it is the header of a table of metrics; else none. Parquet's columns."""
        if self.raw.startswith(b"PAR1"):
            return parquet_columns(self.path)
        first = self.text.split("\n", 1)[0].strip()
        if first[:1] in ("{", "[") or (METRIC_KEY.search(self.data) and "{" in self.text):
            return []
        try:
            cells = next(csv.reader([first], delimiter=max(",\t;|", key=first.count)), [])
        except csv.Error:
            return []
        cells = [cell.strip().strip('"') for cell in cells]
        if len(cells) < 2 or any(len(cell) > 200 for cell in cells):
            return []
        ends = tuple(f"{mark}{word}" for word in STEP_COLUMNS for mark in ("/", "_", " "))
        return cells if any(c.lower() in STEP_COLUMNS or c.lower().endswith(ends) for c in cells) else []


@dataclass(frozen=True)
class LogFormat:
    """One foreign format.

    Attributes:
        name: as `--as` takes it.
        description: what it is, in a line.
        trainers: who writes it.
        file_name: what such a file is usually called.
        example: the first lines of such a file, which its own `sniff` recognises; "" for a binary format.
        order, why: when its `sniff` is asked, small numbers first, and why then.
        sniff: whether a file is of this format, by its beginning.
        read: reads a file (a folder too, where `reads_folders`).
        rounding: how much of its numbers' digits it keeps: 0 all, 1 as its writer rounds, 2 four digits or float32.
            Where several sources of one run hold a value, that of the smallest number is taken.
        reads_folders: `read` takes a folder, too.
        sniff_folder: whether a folder as a whole is of this format.
    """

    name: str
    description: str
    trainers: tuple[str, ...]
    file_name: str
    order: int
    why: str
    sniff: Callable[[Head], bool]
    read: Callable[[Path, Options], Parsed]
    example: str = ""
    rounding: int = 1
    reads_folders: bool = False
    sniff_folder: Callable[[Path], bool] | None = None


FORMATS: Registry[LogFormat] = Registry("format", "dpo_diag.importers.formats")
"""Every format by name."""


def register(log_format: LogFormat) -> LogFormat:
    """Make a format known to `dpo-diag import`; a plugin calls it when it is imported.

    Raises:
        DiagError: another format has the name.
    """
    return FORMATS.add(log_format.name, log_format)


def formats_in_order() -> list[LogFormat]:
    """The formats as they are asked whether a file is theirs."""
    return sorted(FORMATS.values(), key=lambda f: (f.order, f.name))


def detect(path: Path) -> LogFormat:
    """The format of a file, by its beginning.

    Raises:
        DiagError: the file is empty, or no format knows it.
    """
    head = Head(path)
    if not head.data.strip(b"\0 \t\r\n"):
        raise DiagError("the file is empty", where=path, expected="a log", hint="name the trainer's log")
    for log_format in formats_in_order():
        if log_format.sniff(head):
            return log_format
    raise DiagError("not a log that is known here", where=path, got="binary data", hint="see dpo-diag import --formats")
