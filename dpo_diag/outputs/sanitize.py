"""Model text is hostile input: what may reach a terminal, an HTML page, a script element or a spreadsheet.

One rule for all of them: a character that a reader cannot see, or that acts on what displays it, is replaced by its
code point in plain ASCII (`<U+001B>`), so that it is still there to be read. That covers C0 and C1 controls (ANSI
escapes), bidirectional overrides, zero-width and other format characters, tag characters, fillers, lone surrogates.
Newline and tab stay. Right-to-left letters stay too: they are text; only the invisible controls over them go.
"""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any

import pandas as pd

MAX_CHARS = 20_000
"""Characters of one answer that a page or a terminal shows; a model can write megabytes without a newline."""

_HIDDEN_RANGES = (
    (0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x034F, 0x034F), (0x0600, 0x0605), (0x061C, 0x061C),
    (0x06DD, 0x06DD), (0x070F, 0x070F), (0x0890, 0x0891), (0x08E2, 0x08E2), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164),
    (0xD800, 0xDFFF), (0xFE00, 0xFE0D), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0xFFFE, 0xFFFF),
    (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1345F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)  # fmt: skip
_HIDDEN = re.compile("[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in _HIDDEN_RANGES) + "]")
# U+FE0E and U+FE0F choose between text and emoji form and are everyday; a run of them carries hidden bits.
_SELECTORS = re.compile("([\ufe0e\ufe0f])([\ufe0e\ufe0f]+)")
_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_STACKED = re.compile(f"([{_MARKS}]{{6}})([{_MARKS}]+)")
_FORMULA_START = ("=", "+", "-", "@", "|", "%", "＝", "＋", "－", "＠")
_PLAIN_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")


def _name(match: re.Match[str]) -> str:
    return f"<U+{ord(match.group()):04X}>"


def visible(text: str) -> str:
    """The text with every hidden or acting character as `<U+XXXX>`; newline and tab stay; "" for "".

    More than six combining marks on one another (they can cover the lines around them) are cut to six and counted.
    """
    text = _HIDDEN.sub(_name, text)
    text = _SELECTORS.sub(lambda m: m.group(1) + "".join(f"<U+{ord(c):04X}>" for c in m.group(2)), text)
    return _STACKED.sub(lambda m: f"{m.group(1)}<+{len(m.group(2))} marks>", text)


def cut(text: str, max_chars: int | None) -> str:
    """At most `max_chars` characters of the text, then how many were left out; all of it for None."""
    if max_chars is None or len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}… [+{len(text) - max_chars} characters]"


def for_terminal(text: object, *, max_chars: int | None = MAX_CHARS, one_line: bool = False) -> str:
    """Text that a terminal can print as it stands: no escape sequence, no carriage return, no reordering.

    Args:
        text: anything; None becomes "".
        max_chars: characters to keep, the rest is counted; None for all.
        one_line: newlines and tabs become `\\n` and `\\t`, so that a table's row stays one row.
    """
    safe = visible(cut("" if text is None else str(text), max_chars))
    return safe.replace("\n", "\\n").replace("\t", "\\t") if one_line else safe


def for_html(text: object, *, max_chars: int | None = MAX_CHARS) -> str:
    """Text for the content of an HTML element or a quoted attribute: hidden characters shown, &<>"' escaped.

    Not for URLs, style or script: see `json_for_script`. None becomes "".
    """
    return html.escape(visible(cut("" if text is None else str(text), max_chars)), quote=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def json_for_script(value: Any) -> str:
    """Strict JSON that is safe inside `<script type="application/json">`: no <, >, & and nothing but ASCII in it.

    NaN and infinities become null. The text is unchanged after JSON.parse: who shows it must set textContent, or
    pass it through `visible` first.
    """
    document = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False)
    return document.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def for_csv(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula (OWASP, CSV injection): such text gets a leading apostrophe.

    Text that starts, after blanks, with = + - @ | % or their full-width forms, or with a tab or line break, is
    affected; a plain number written as text is not, and what is not text is returned as it is. Hidden characters
    become `<U+XXXX>`.
    """
    if not isinstance(value, str):
        return value
    safe = visible(value)
    bare = safe.lstrip()
    # visible() has already turned a leading \r into text, so look for it in the original.
    acts = bare.startswith(_FORMULA_START) or value[:1] in ("\t", "\r", "\n")
    return f"'{safe}" if acts and not _PLAIN_NUMBER.match(safe) else safe


def frame_for_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy of the frame whose text cells, column names and text index went through `for_csv`."""
    out = frame.copy()
    for i, column in enumerate(out.columns):
        if not pd.api.types.is_numeric_dtype(out.dtypes.iloc[i]):
            out[column] = out[column].astype(object).map(for_csv)
    out.columns = pd.Index([for_csv(c) for c in out.columns])
    if not isinstance(out.index, pd.MultiIndex) and not pd.api.types.is_numeric_dtype(out.index.dtype):
        out.index = out.index.astype(object).map(for_csv)
    return out
