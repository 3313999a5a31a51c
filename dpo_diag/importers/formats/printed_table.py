"""A printed table: a DataFrame's `to_string()` or `print`, a markdown table, a table with drawn lines.

Columns are told apart by bars, or by two blanks and more; a first column without a name is the index. pandas breaks a
wide frame into blocks (a backslash at a header's end) and leaves out the middle of a long one (`...`): what was left
out cannot be read, so a table without its middle rows is refused, and columns that are left out are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.importers.cells import Cells
from dpo_diag.importers.keys import STEP_KEYS, clean_key, place
from dpo_diag.importers.log_format import Head, LogFormat, register
from dpo_diag.importers.numbers import is_missing, number
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.records.text_files import lines

_BARS = str.maketrans({"\u2502": "|", "\u2503": "|", "\u2551": "|"})
_RULE = re.compile(r"[-+=:|\s\u2500-\u257f]+")
"""A line of a table that only draws."""
_SIZE = re.compile(r"\[(\d+) rows x (\d+) columns\]")
_LEFT_OUT = ("...", "..", "\u2026")
_SNIFFED = 200


@dataclass
class _Block:
    """Lines under one header: (line, cells)."""

    names: list[str]
    goes_on: bool
    rows: list[tuple[int, list[str]]] = field(default_factory=list)


def _cells(line: str) -> list[str]:
    text = line.translate(_BARS).strip()
    if "|" in text:
        return [cell.strip() for cell in text.strip("|").split("|")]
    return re.split(r"\s{2,}|\t", text)


def is_header(cells: list[str]) -> bool:
    """Whether a line names a metric and a step or another metric."""
    if len(cells) < 2 or any(number(cell) is not None for cell in cells):
        return False
    steps = [c for c in cells if clean_key(c).lower() in STEP_KEYS]
    known = [c for c in cells if (where := place(c)) is not None and where.known]
    return bool(known) and len(known) + len(steps) >= 2


def _header(line: str) -> list[str]:
    """A header's names, none where it is none; single blanks part them only where no name holds one."""
    text = line.rstrip("\n \\")
    for cells in (_cells(text), text.split()):
        if is_header(cells):
            return cells
    return []


def _blocks(numbered: Iterator[tuple[int, str]], parsed: Parsed) -> list[_Block]:
    blocks: list[_Block] = []
    for line, text in numbered:
        size = _SIZE.search(text)
        if size:
            parsed.details["printed_rows"] = int(size.group(1))
            continue
        if not text.strip() or (_RULE.fullmatch(text) and not any(c.isalnum() for c in text)):
            continue
        awaited = bool(blocks and blocks[-1].goes_on and blocks[-1].rows) and number(text.split()[0]) is None
        if names := _cells(text.rstrip(" \\")) if awaited else _header(text):
            if not blocks or names != blocks[-1].names:  # a header that is repeated stays the same table
                blocks.append(_Block(names, text.rstrip().endswith("\\")))
            continue
        if not blocks:
            continue
        cells = _cells(text) if "|" in text.translate(_BARS) else text.split()
        names = blocks[-1].names
        if len(cells) == 1 and clean_key(cells[0]).lower() in STEP_KEYS and not blocks[-1].rows:
            blocks[-1].names = [cells[0], *names]  # the index's own name stands on a line below the header
        elif all(cell in _LEFT_OUT for cell in cells):
            blocks[-1].rows.append((line, ["..."] * len(names)))
        elif not any(number(cell.replace(",", ".")) is not None for cell in cells):
            continue  # prose
        elif len(cells) in (len(names), len(names) + 1):
            blocks[-1].rows.append((line, cells))
        else:
            parsed.skipped.add(line, f"{len(cells)} cells, expected {len(names)}")
    return [block for block in blocks if block.rows]


def read_printed_table(path: Path, options: Options) -> Parsed:
    """Read the rows of the first table of a log.

    Raises:
        DiagError: the table's middle was left out when it was printed.
    """
    parsed = Parsed.of("table", [path], options)
    text = ((line, raw.decode("utf-8", "replace")) for line, raw in lines(path, parsed.skipped))
    return read_lines(text, parsed, path, options)


def read_lines(numbered: Iterator[tuple[int, str]], parsed: Parsed, path: Path, options: Options) -> Parsed:
    """Read (number, line) of a printed table into `parsed`; raises as `read_printed_table`."""
    blocks = _blocks(numbered, parsed)
    wide = [block for i, block in enumerate(blocks) if i == 0 or blocks[i - 1].goes_on]
    if len(wide) < len(blocks):
        parsed.notes.append(f"{len(blocks)} tables in the file; the first is taken")
    rows: list[tuple[int, dict[str, Any]]] = []
    for block in wide:
        for i, (line, cells) in enumerate(block.rows):
            names = block.names if len(cells) == len(block.names) else ["", *block.names]
            if i == len(rows):
                rows.append((line, {}))
            rows[i][1].update(zip(names, cells, strict=True))
    printed = sum(not set(row.values()) <= {*_LEFT_OUT, ""} for _, row in rows)
    stated = parsed.details.get("printed_rows", len(rows))
    if printed < max(len(rows), stated):
        raise DiagError(
            "the middle of the table was left out when it was printed", where=path, got=f"{printed} rows",
            expected=f"{stated} rows" if stated > printed else "all rows", hint="write it whole: df.to_csv(PATH)",
        )  # fmt: skip
    left_out = {name for _, row in rows for name, cell in row.items() if name in _LEFT_OUT or cell in _LEFT_OUT}
    if left_out:
        parsed.notes.append("columns were left out when the table was printed (...)")
    numerals = Cells((row for _, row in rows), options.decimal, path)
    for line, row in rows:
        parsed.store.add(
            {k: numerals.plain(k, v) for k, v in row.items() if k and k not in left_out and not is_missing(v)}, line
        )
    parsed.n_rows = len(rows)
    return parsed.with_steps(options)


def _is_printed_table(head: Head) -> bool:
    """A header with a row of as many numbers below it."""
    below: list[str] = []
    comma_or_tab = head.text.split("\n", 1)[0]
    if "\t" in comma_or_tab or "," in comma_or_tab or ";" in comma_or_tab:
        return False
    for line in head.text.split("\n")[:_SNIFFED]:
        if below and line.strip() and not (_RULE.fullmatch(line) and not any(c.isalnum() for c in line)):
            cells = _cells(line) if "|" in line.translate(_BARS) else line.split()
            if len(cells) == 1:
                continue
            numbers = [number(cell.replace(",", ".")) is not None or is_missing(cell) for cell in cells]
            return len(cells) in (len(below), len(below) + 1) and sum(numbers) >= len(cells) - 1
        below = _header(line) or below
    return False


register(
    LogFormat(
        name="table",
        description="printed table (a DataFrame's to_string or print, markdown)",
        trainers=("pandas", "any"),
        file_name="frame.txt",
        example="   step    loss  rewards/chosen\n0    10  0.6931            0.01\n1    20  0.6800            0.02\n",
        order=65,
        why="a line of names above lines of as many numbers",
        sniff=_is_printed_table,
        read=read_printed_table,
        rounding=2,
    )
)
