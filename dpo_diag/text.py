"""What people read: how a number, an interval, a table and a JSON document are printed, and how foreign text is shown.

Model text is hostile input to a terminal, a page and a spreadsheet. One rule for all of them: a character that a reader
cannot see, or that acts on what displays it, is replaced by its code point in plain ASCII (`<U+001B>`), so that it is
still there to be read. That covers C0 and C1 controls (ANSI escapes), bidirectional overrides, zero-width and other
format characters, tag characters, fillers, lone surrogates. Newline and tab stay. Right-to-left letters stay too: they
are text; only the invisible controls over them go. A page escapes what remains (jinja2's autoescape, markupsafe).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

if TYPE_CHECKING:
    import pandas as pd  # not at run time: a usage error must not wait for it

MISSING = "–"
MAX_CHARS = 20_000
"""Characters of one answer that a terminal shows; a model can write megabytes without a newline."""

_HIDDEN_RANGES = (
    (0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x034F, 0x034F), (0x0600, 0x0605), (0x061C, 0x061C),
    (0x06DD, 0x06DD), (0x070F, 0x070F), (0x0890, 0x0891), (0x08E2, 0x08E2), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164),
    (0xD800, 0xDFFF), (0xFE00, 0xFE0D), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0xFFFE, 0xFFFF),
    (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1345F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)  # fmt: skip
HIDDEN = re.compile("[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in _HIDDEN_RANGES) + "]")
"""A character that a reader cannot see, or that acts on what displays it."""
# U+FE0E and U+FE0F choose between text and emoji form and are everyday; a run of them carries hidden bits.
_SELECTORS = re.compile("([\ufe0e\ufe0f])([\ufe0e\ufe0f]+)")
_MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_STACKED = re.compile(f"([{_MARKS}]{{6}})([{_MARKS}]+)")
_LEAST_COLUMN = 12
_FORMULA_START = ("=", "+", "-", "@", "|", "%", "＝", "＋", "－", "＠")
_LEAST_PLAIN, _LEAST_POWERS = 1e-3, 1e6
"""Sizes between which a number is printed without an exponent."""
_ROUNDING = 1e-6
_PLAIN_NUMBER = re.compile(r"[+-]?(\d++\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")


# --- numbers ----------------------------------------------------------------------------------------------------------


def number(value: Any, digits: int = 4) -> str:
    """A number with `digits` significant digits; whole numbers whole; "–" for None, "NaN", "∞"; text as it is.

    The minus is ASCII's, so that a printed number can be pasted into code.
    """
    value = _as_python(value)
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    try:
        x = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞" if x > 0 else "-∞"
    if x == int(x) and abs(x) < _LEAST_POWERS:
        return str(int(x))
    if _LEAST_PLAIN <= abs(x) < _LEAST_POWERS:
        rounded = float(f"{abs(x):.{digits - 1}e}")  # 0.0099999 has the magnitude of 0.01
        return f"{x:.{max(0, digits - 1 - math.floor(math.log10(rounded)))}f}"
    return f"{x:.{digits - 1}g}"


def signed(value: Any, digits: int = 3) -> str:
    """As `number`, with a plus sign in front of what rose."""
    text = number(value, digits)
    return f"+{text}" if (text[:1].isdigit() and text != "0") or text == "∞" else text


def percent(share: float | None, digits: int = 0) -> str:
    """A share in [0, 1] as "12 %"; "–" for None or NaN."""
    return MISSING if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def interval(bounds: Sequence[float] | None, level: float = 0.95, write: Any = signed) -> str:
    """ "95 % interval -0.187 to -0.04", or "no interval"; `write` prints a bound (`number` for what is no change).

    A level of NaN is no confidence interval: "range 1 to 2".
    """
    what = "range" if math.isnan(level) else f"{100 * level:.4g} % interval"
    return f"{what} {write(bounds[0])} to {write(bounds[1])}" if bounds else "no interval"


def bracket(low: float | None, high: float | None, write: Any = number) -> str:
    """ "[0.21, 0.34]", for a table whose header names the level; "–" where there is no interval."""
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"[{write(low, 3)}, {write(high, 3)}]" if known else MISSING


def both_ends(before: Any, after: Any, digits: int = 4) -> tuple[str, str]:
    """Two numbers to compare, with the same decimals: as many as the smaller one needs for its `digits`, but at most
    one more than the larger one. Whole numbers, what is not finite and what needs an exponent as `number` has them.

    >>> both_ends(-3.73, -3.7, 3), both_ends(0, -1.395), both_ends(0.693147, 0.004078), both_ends(12, 7)
    (('-3.73', '-3.70'), ('0.000', '-1.395'), ('0.69315', '0.00408'), ('12', '7'))
    """
    before, after = _as_python(before), _as_python(after)
    apart = number(before, digits), number(after, digits)
    numbers = [float(v) for v in (before, after) if isinstance(v, (int, float)) and math.isfinite(v)]
    if len(numbers) < 2 or isinstance(before, bool) or all(v == int(v) for v in numbers):
        return apart
    sizes = sorted(abs(v) for v in numbers if v)
    if not _LEAST_PLAIN <= sizes[-1] < _LEAST_POWERS:
        return apart
    fine, coarse = (digits - 1 - math.floor(math.log10(float(f"{v:.{digits - 1}e}"))) for v in (sizes[0], sizes[-1]))
    decimals = max(0, min(fine, coarse + 1))
    if sizes[0] < 0.5 * 10**-decimals:
        return apart
    return f"{numbers[0]:.{decimals}f}", f"{numbers[1]:.{decimals}f}"


def arrow(before: Any, after: Any, digits: int = 4) -> str:
    """ "-3.73 → -3.70": see `both_ends`."""
    return " → ".join(both_ends(before, after, digits))


def same(before: float, after: float) -> bool:
    """Whether two numbers differ by rounding only (logs hold float32 and its sums)."""
    return abs(after - before) <= _ROUNDING * max(1.0, abs(before), abs(after))


def moved(before: float | None, after: float | None) -> str:
    """ "rose 1 → 2", "fell 2 → 1", or "stayed at 1" where the printed digits do not differ."""
    first, last = both_ends(before, after)
    if before is None or after is None or first == last:
        return f"stayed at {number(after)}" if first == last else f"{first} → {last}"
    return f"{'rose' if after > before else 'fell'} {first} → {last}"


def by(change: float, digits: int = 3) -> str:
    """ "rose by 0.5", "fell by 0.5", or "did not change" where it is 0 up to rounding: the word follows the sign."""
    size = number(abs(change), digits)
    return "did not change" if same(0.0, change) else f"{'rose' if change > 0 else 'fell'} by {size}"


def plural(n: int, one: str, many: str | None = None) -> str:
    """ "1 pair", "2 pairs"; `many` where an s does not make the plural."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def size(n_bytes: float) -> str:
    """Bytes as people say them: "512 bytes", "12 MB", "1.6 GB"."""
    value, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.2g} {units[0]}" if value < 9.95 else f"{value:.0f} {units[0]}"


def about(n: int) -> int:
    """A count rounded up to two digits: 354 is about 360."""
    step = int(10 ** max(0, len(str(n)) - 2))
    return -(-n // step) * step


def some(values: Iterable[Any], shown: int = 5) -> str:
    """ "a, b, c and 4 more"."""
    listed = [str(v) for v in values]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def capital(text: str) -> str:
    """The text with its first letter large and the rest as it is; a name (ppl_token, rewards/chosen) stays a name.

    >>> capital("loss of the batches"), capital("rewards/chosen is 0.2"), capital("ppl_token rose")
    ('Loss of the batches', 'rewards/chosen is 0.2', 'ppl_token rose')
    """
    first = text.partition(" ")[0]
    return text if "_" in first or "/" in first else text[:1].upper() + text[1:]


# --- foreign text -----------------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """The text with every hidden or acting character as `<U+XXXX>`; newline and tab stay; "" for "".

    More than six combining marks on one another (they can cover the lines around them) are cut to six and counted.
    """
    text = HIDDEN.sub(lambda m: f"<U+{ord(m.group()):04X}>", text)
    text = _SELECTORS.sub(lambda m: m.group(1) + "".join(f"<U+{ord(c):04X}>" for c in m.group(2)), text)
    return _STACKED.sub(lambda m: f"{m.group(1)}<+{len(m.group(2))} marks>", text)


def cut(text: str, max_chars: int | None) -> str:
    """At most `max_chars` characters of the text, then how many were left out; all of it for None."""
    if max_chars is None or len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}… [+{len(text) - max_chars} characters]"


def safe(text: object, *, max_chars: int | None = MAX_CHARS, one_line: bool = False) -> str:
    """Foreign text that a terminal can print as it stands: no escape sequence, no carriage return, no reordering.

    Args:
        text: anything; None becomes "".
        max_chars: characters to keep, the rest is counted; None for all.
        one_line: newlines and tabs become `\\n` and `\\t`, so that a table's row stays one row.
    """
    shown = visible(cut("" if text is None else str(text), max_chars))
    return shown.replace("\n", "\\n").replace("\t", "\\t") if one_line else shown


def for_csv(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula (OWASP, CSV injection): such text gets a leading apostrophe.

    Text that starts, after blanks, with = + - @ | % or their full-width forms, or with a tab or line break, is
    affected; a plain number written as text is not, and what is not text is returned as it is. Hidden characters
    become `<U+XXXX>`.
    """
    if not isinstance(value, str):
        return value
    shown = visible(value)
    # visible() has already turned a leading \r into text, so look for it in the original.
    acts = shown.lstrip().startswith(_FORMULA_START) or value[:1] in ("\t", "\r", "\n")
    return f"'{shown}" if acts and not _PLAIN_NUMBER.match(shown) else shown


def frame_for_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy of the frame whose text cells, column names and text index went through `for_csv`."""
    import pandas as pd

    out = frame.copy()
    for i, column in enumerate(out.columns):
        if not pd.api.types.is_numeric_dtype(out.dtypes.iloc[i]):
            out[column] = out[column].astype(object).map(for_csv)
    out.columns = pd.Index([for_csv(c) for c in out.columns])
    if not isinstance(out.index, pd.MultiIndex) and not pd.api.types.is_numeric_dtype(out.index.dtype):
        out.index = out.index.astype(object).map(for_csv)
    return out


# --- tables -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], width: int = 100, digits: int = 4) -> str:
    """Aligned lines without a frame, numbers to the right, at most `width` cells wide; the header alone for no rows.

    Cells are made safe for a terminal. Columns of numbers never lose a digit; text that does not fit ends in "…".
    """
    given = [list(row) for row in rows]
    cells = [[safe(number(v, digits), max_chars=200, one_line=True) for v in row] for row in given]
    numeric = [
        bool(given) and all(row[i] is None or isinstance(row[i], Number) for row in given) for i in range(len(header))
    ]
    sizes = [max(cell_len(name), *(cell_len(row[i]) for row in cells), 0) for i, name in enumerate(header)]
    # A shortened number would be another number, so only text shrinks, to a dozen cells; then the line grows instead.
    while sum(sizes) + 2 * (len(sizes) - 1) > width:
        widest = max((size, i) for i, size in enumerate([*sizes, 0]) if i == len(sizes) or not numeric[i])
        if widest[0] <= _LEAST_COLUMN:
            break
        sizes[widest[1]] -= 1
    lines = ["  ".join(map(_cell, row, sizes, numeric)).rstrip() for row in [list(header), *cells]]
    return "\n".join(lines)


def terminal_width(unknown: int = 100, least: int = 60) -> int:
    """Columns of the terminal, at most 200: longer lines are hard to follow; `unknown` where the output is a file."""
    return max(least, min(200, shutil.get_terminal_size((unknown, 24)).columns))


def takes_styles(stream: Any) -> bool:
    """Whether a stream is a terminal that shows colours and underlines (NO_COLOR and TERM=dumb say no)."""
    return not ("NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not stream.isatty())


def _cell(text: str, size: int, right: bool) -> str:
    if cell_len(text) > size:
        return set_cell_size(text, size - 1) + "…"
    return " " * (size - cell_len(text)) + text if right else set_cell_size(text, size)


# --- strict JSON ------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """`value` as what strict JSON holds: numpy scalars as Python's; NaN, infinities, NA and NaT as None; keys as text.

    None therefore means "unknown, or not a finite number"; where infinity itself is the finding, a document says so
    under another key (a count, a reason). Frames become lists of rows, dataclasses are not taken apart.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "itertuples"):
        return records(value)
    known = _as_python(value)
    return known if known is None else plain(known) if known is not value else str(value)


def _as_python(value: Any) -> Any:
    """numpy's scalars and arrays and pandas' series as Python's values, pandas' NA and NaT as None, others as given.

    Told by what they have, so that neither library is imported for a number that is Python's own.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as plain dictionaries, in order."""
    columns = [str(c) for c in frame.columns]
    return [{c: plain(v) for c, v in zip(columns, row, strict=True)} for row in frame.itertuples(index=False)]


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON (RFC 8259: no NaN), in UTF-8 text; what `visible` replaces is escaped, so that it acts on
    no terminal and is the same value to whoever parses it (a lone surrogate, too, which UTF-8 cannot hold)."""
    text = json.dumps(plain(value), allow_nan=False, ensure_ascii=False, indent=indent)
    return HIDDEN.sub(lambda m: json.dumps(m.group())[1:-1], text)
