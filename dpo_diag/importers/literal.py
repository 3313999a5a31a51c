"""A printed dictionary to a dictionary: JSON or Python's repr, with nan, inf and wrapped scalars."""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import Any

from dpo_diag.documents import parse_json, repeated_keys
from dpo_diag.records.literals import python_literal
from dpo_diag.records.row_files import BadRow, twice

ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_FRAME = re.compile(
    rb"(?:\r[^\r\n{}|%]{0,100}+(?<=\d)|(?<![ \t])[ \t]*+\d{1,3})"
    rb"%\|[^|\r\n]{0,400}\|\s*+\d++/\d++ \[[^\]\r\n]{0,120}\]?\r?"
)
_WORDS = re.compile(r"(?<![\w'\"./-])(-?)(nan|inf|NaN|Infinity|infinity|None|True|False)(?![\w'\"./-])")
_JSON_WORDS = {
    "nan": "NaN", "NaN": "NaN", "inf": "Infinity", "Infinity": "Infinity", "infinity": "Infinity", "None": "null",
    "True": "true", "False": "false",
}  # fmt: skip
_CALL = re.compile(r"(?<![\w.])([\w.]++)\(\s*+(-?[\w.+-]++)\s*+(?:,[^()]*+)?\)")
_SCALARS = ("float", "int", "tensor", "array")
MAX_ROW = 1 << 16


def parse_row(text: bytes) -> dict[str, Any] | BadRow | None:
    """The dictionary that `text` prints, a bad row where it holds a key twice, or None. Text beyond 64 KiB is no log
    row."""
    if len(text) > MAX_ROW:
        return None
    try:
        # A row of quoted keys and plain numbers becomes JSON by its quotes alone: ten times faster than ast.
        quoted = text.replace(b"'", b'"').decode()
        row = parse_json(quoted)
        return (twice(repeated_keys(row)) or row) if isinstance(row, dict) else None
    except ValueError:
        return _parse_slowly(text)


def _unwrapped(call: re.Match[str]) -> str:
    """What a printed scalar holds, `tensor(0.7, device='cuda:0')` or `np.float64(0.7)`; any other call as it is."""
    return call[2] if call[1].rstrip("0123456789").endswith(_SCALARS) else call[0]


def _parse_slowly(raw: bytes) -> dict[str, Any] | BadRow | None:
    cleaned = ANSI.sub(b"", raw)
    if b"%|" in cleaned:
        cleaned = _FRAME.sub(b"", cleaned)
    text = re.sub(r"[\r\n]+", " ", cleaned.decode("utf-8", "replace"))
    text = _CALL.sub(_unwrapped, text)
    for candidate in (text, text.replace("'", '"')):
        try:
            document = _WORDS.sub(lambda m: m.group(1) + _JSON_WORDS[m.group(2)], candidate)
            row = parse_json(document)
            return (twice(repeated_keys(row)) or row) if isinstance(row, dict) else None
        except ValueError:
            continue
    try:
        row = python_literal(text)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    return twice(_repeated(text, row)) or {str(k): v for k, v in row.items()}


def _repeated(text: str, row: dict[Any, Any]) -> list[str]:
    """Keys that the literal of a dictionary holds twice."""
    keys = getattr(ast.parse(text.strip(), mode="eval").body, "keys", ())
    if len(keys) == len(row):
        return []
    return [str(key) for key, n in Counter(map(ast.literal_eval, keys)).items() if n > 1]
