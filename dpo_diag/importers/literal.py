"""A printed dictionary to a dictionary: JSON or Python's repr, with nan, inf and wrapped scalars."""

from __future__ import annotations

import json
import re
from typing import Any

from dpo_diag.records.literals import python_literal

ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_FRAME = re.compile(rb"(?:\r[^\r\n{}|%]{0,80}?)?[ \t]*\d{1,3}%\|[^|\r\n]{0,400}\|\s*\d+/\d+ \[[^\]\r\n]{0,120}\]?\r?")
_WORDS = re.compile(r"(?<![\w'\"./-])(-?)(nan|inf|NaN|Infinity|infinity|None|True|False)(?![\w'\"./-])")
_JSON_WORDS = {
    "nan": "NaN", "NaN": "NaN", "inf": "Infinity", "Infinity": "Infinity", "infinity": "Infinity", "None": "null",
    "True": "true", "False": "false",
}  # fmt: skip
_CALL = re.compile(r"\b(?:[\w.]*(?:float\d*|int\d*|tensor|array|bfloat16))\(\s*(-?[\w.+-]+)\s*(?:,[^()]*)?\)")
MAX_ROW = 1 << 16


def parse_row(text: bytes) -> dict[str, Any] | None:
    """The dictionary that `text` prints, or None. Text beyond 64 KiB is no log row."""
    if len(text) > MAX_ROW:
        return None
    try:
        # A row of quoted keys and plain numbers becomes JSON by its quotes alone: ten times faster than ast.
        row = json.loads(text.replace(b"'", b'"').decode())
        return row if isinstance(row, dict) else None
    except (ValueError, RecursionError):
        return _parse_slowly(text)


def _parse_slowly(raw: bytes) -> dict[str, Any] | None:
    cleaned = ANSI.sub(b"", raw)
    if b"%|" in cleaned:
        cleaned = _FRAME.sub(b"", cleaned)
    text = re.sub(r"[\r\n]+", " ", cleaned.decode("utf-8", "replace"))
    text = _CALL.sub(r"\1", text)
    for candidate in (text, text.replace("'", '"')):
        try:
            row = json.loads(_WORDS.sub(lambda m: m.group(1) + _JSON_WORDS[m.group(2)], candidate))
            return row if isinstance(row, dict) else None
        except (ValueError, RecursionError):
            continue
    try:
        row = python_literal(text)
    except ValueError:
        return None
    return {str(k): v for k, v in row.items()} if isinstance(row, dict) else None
