"""Numbers in the cells of a text table: decimal commas and thousands separators, decided over whole columns.

`0,6444` has a decimal comma and `1,234.5` a separator; `1,000` alone can be read both ways. A column's other cells
decide, then the other columns of the table; steps rise, which decides theirs. Where nothing decides, the user must.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from dpo_diag.errors import DiagError
from dpo_diag.importers.keys import EPOCH_KEYS, STEP_KEYS, TOTAL_KEYS, clean_key

Decimal = Literal["point", "comma"]
_NUMBER = re.compile(r"[-+\u2212]?[\d.,]*\d(?:[eE][-+]?\d+)?%?")
_GROUPED = re.compile(r"[-+\u2212]?[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*%?")
"""Groups of three digits: a thousands separator, or one decimal mark before three digits."""
_COUNTS = frozenset((*STEP_KEYS, *TOTAL_KEYS))


def _reading(cell: str) -> Decimal | Literal["no"] | None:
    """What a cell says of its decimal mark; "no" for one that is no number or has no mark, None for one of two."""
    if not _NUMBER.fullmatch(cell):
        return "no"
    comma, point = cell.rfind(","), cell.rfind(".")
    if comma < 0 and point < 0:
        return "no"
    if comma >= 0 and point >= 0:
        return "comma" if comma > point else "point"
    if match := _GROUPED.fullmatch(cell):
        if cell.count(match.group(1)) > 1:  # a mark that comes twice separates thousands
            return "point" if comma >= 0 else "comma"
        return None
    return "comma" if comma >= 0 else "point"


class Cells:
    """How a table's cells are to be read.

    Args:
        rows: its first rows, by the header's names.
        asked: what `--decimal` says; it decides for all columns.
        where: the file, for errors.

    Raises:
        DiagError: a column whose numbers can be read two ways, with nothing in the table that decides.
    """

    def __init__(self, rows: Iterable[Mapping[str, object]], asked: Decimal | None, where: Path) -> None:
        columns: dict[str, list[str]] = {}
        for row in rows:
            for name, cell in row.items():
                if isinstance(cell, str) and ("," in cell or "." in cell or cell.strip().isdigit()):
                    columns.setdefault(name, []).append(cell.strip())
        self._decimal: dict[str, Decimal] = {}
        open_: dict[str, list[str]] = {}
        for name, cells in columns.items():
            found = {_reading(cell) for cell in cells} - {"no"}
            if asked is not None:
                self._decimal[name] = asked
            elif "comma" in found and "point" not in found:
                self._decimal[name] = "comma"
            elif found == {None} and any("," in cell for cell in cells):
                open_[name] = cells
            elif "point" in found:
                self._decimal[name] = "point"
        said = {mark for name, mark in self._decimal.items() if name not in open_}
        # Points before three digits are decimals, unless another column has decimal commas.
        self._other: Decimal = "comma" if said == {"comma"} else "point"
        for name, cells in open_.items():
            self._decimal[name] = _decided(name, cells, said, where)

    def plain(self, name: str, cell: object) -> object:
        """The cell as a numeral with a decimal point and without separators; anything else as it is."""
        if not isinstance(cell, str) or ("," not in cell and "." not in cell):
            return cell
        text = cell.strip()
        if _reading(text) == "no":
            return cell
        if self._decimal.get(name, self._other) == "comma":
            return text.replace(".", "").replace(",", ".")
        return text.replace(",", "")


def _decided(name: str, cells: list[str], said: set[Decimal], where: Path) -> Decimal:
    """The decimal mark of a column in which `1,000` stands and nothing else that decides."""
    if clean_key(name).lower().rsplit(" - ", 1)[-1] in _COUNTS:
        plain = [int(cell.replace(",", "")) for cell in cells if _GROUPED.fullmatch(cell) or cell.isdigit()]
        mixed = any(cell.isdigit() for cell in cells)
        if mixed and plain == sorted(plain):
            return "point"  # 900, 950, 1,000
    if len(said) == 1:
        only = next(iter(said))
        # A step of a table with decimal commas may be 1,000 or 1: its own cells have not told.
        if only == "point" or clean_key(name).lower() not in (*_COUNTS, *EPOCH_KEYS):
            return only
    example = next(cell for cell in cells if "," in cell)
    raise DiagError(
        "numbers that can be read two ways", where=f"{where}, column {name}", got=example,
        expected="1000 or 1", hint="say which: --decimal point or --decimal comma", usage=True,
    )  # fmt: skip
