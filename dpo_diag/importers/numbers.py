"""Numbers and steps from what a log holds: numerals, wrapped scalars, percentages, `12/94`."""

from __future__ import annotations

import math
import re
from typing import Any

MAX_STEP = 1 << 53
"""Beyond it a float names no single whole number."""
_WRAPPED = re.compile(r"^(?:[\w.]*(?:float\d*|int\d*|tensor|array|Array|bfloat16))\(\s*+([^,()]++)[^()]*\)$")
_SPELLED = re.compile(r"[-+\u2212]?\d[\d.\u00a0\u202f\u2009'\u2019 ]*+(?:[eEdD][-+]?\d+)?\s*+%?")
_GAPS = re.compile(r"(?<=\d)[\u00a0\u202f\u2009'\u2019 ](?=\d{3}(?!\d))")
MISSING = ("", "null", "none", "na", "n/a", "<na>", "nat", "-", "--", "\u2013", "\u2014")
"""Cells that say that there is no value; `nan` may be one or a value, see `importers.padding`."""


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none.

    >>> [is_missing(v) for v in (None, " - ", "None", "nan", 0.0)]
    [True, True, True, False, False]
    """
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING)


def number(value: Any) -> float | None:
    """A float from what a log holds: a number, a numeral (`'0.6931'`, `'NaN'`), `tensor(0.7)`; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return None
    if isinstance(value, str):
        text = value.strip()
        if not text or "_" in text:
            return None
        try:
            return float(text)
        except ValueError:
            if (plain := _plain(text)) is not None:
                return plain
            match = _WRAPPED.match(text)
            return number(match.group(1)) if match and "(" not in match.group(1) else None
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return number(value[0])
    return None


def _plain(text: str) -> float | None:
    """Spellings that can be read one way only: `77.3%`, `1.0D-05`, a minus sign, spaces between thousands."""
    if not _SPELLED.fullmatch(text):
        return None
    digits = _GAPS.sub("", text.replace("\u2212", "-").rstrip("% "))
    try:
        value = float(re.sub("[dD]", "e", digits))
    except ValueError:
        return None
    return value / 100 if text.endswith("%") else value


def step_number(value: Any) -> int | None:
    """An optimizer step: a non-negative whole number, also as `'12'`, `12.0` or the `'12/94'` of ms-swift."""
    if isinstance(value, str) and "/" in value:
        value = value.split("/", 1)[0]
    step = number(value)
    if step is None or not math.isfinite(step) or not 0 <= step <= MAX_STEP or step != int(step):
        return None
    return int(step)


def steps_total(value: Any) -> int | None:
    """The total in `'12/94'`."""
    if isinstance(value, str) and "/" in value:
        return step_number(value.split("/", 1)[1])
    return None
