"""How other people write a preference pair: one format a file, which registers how it is known and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpo_diag.registry import Registry
from dpo_diag.rows.pair import Pair

Row = Mapping[str, Any]
DEFAULT = "trl"
"""The format of a row that no other format claims."""


@dataclass(frozen=True)
class RowFormat:
    """A way to write a pair.

    Attributes:
        claims: whether a row, by its keys, is written in this format.
        read: a row as a pair; raises `BadRow` for one that cannot be read.
    """

    claims: Callable[[Row], bool]
    read: Callable[[Row], Pair]


FORMATS: Registry[RowFormat] = Registry("row format", "dpo_diag.rows.forms")


def detect_format(row: Row) -> str:
    """Name of the format that claims a row, else TRL's."""
    return next((name for name, row_format in FORMATS.items() if row_format.claims(row)), DEFAULT)
