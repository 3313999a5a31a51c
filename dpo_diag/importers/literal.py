"""A printed dictionary to a dictionary: JSON or Python's repr, with nan, inf and wrapped scalars."""

from __future__ import annotations

import re
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.records.literals import python_literal

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


def parse_row(text: bytes) -> dict[str, Any] | None:
    """The dictionary that `text` prints, or None. Text beyond 64 KiB is no log row."""
    if len(text) > MAX_ROW:
        return None
    try:
        # A row of quoted keys and plain numbers becomes JSON by its quotes alone: ten times faster than ast.
        row = parse_json(text.replace(b"'", b'"').decode())
        return row if isinstance(row, dict) else None
    except ValueError:
        return _parse_slowly(text)


def _unwrapped(call: re.Match[str]) -> str:
    """What a printed scalar holds, `tensor(0.7, device='cuda:0')` or `np.float64(0.7)`; any other call as it is."""
    return call[2] if call[1].rstrip("0123456789").endswith(_SCALARS) else call[0]


def _parse_slowly(raw: bytes) -> dict[str, Any] | None:
    cleaned = ANSI.sub(b"", raw)
    if b"%|" in cleaned:
        cleaned = _FRAME.sub(b"", cleaned)
    text = re.sub(r"[\r\n]+", " ", cleaned.decode("utf-8", "replace"))
    text = _CALL.sub(_unwrapped, text)
    for candidate in (text, text.replace("'", '"')):
        try:
            row = parse_json(_WORDS.sub(lambda m: m.group(1) + _JSON_WORDS[m.group(2)], candidate))
            return row if isinstance(row, dict) else None
        except ValueError:
            continue
    try:
        row = python_literal(text)
    except ValueError:
        return None
    return {str(k): v for k, v in row.items()} if isinstance(row, dict) else None
