"""Text on its way into the page, and the numbers that only a page writes.

Model text is hostile. Hidden characters are made visible here, everything that is not Markup is escaped by jinja2 or
markupsafe, and the page's CSP lets no foreign script or style run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from markupsafe import Markup

from dpo_diag.text import HIDDEN, cut, number, to_json, visible

MAX_CHARS = 4_000
"""Characters of one text that the page shows."""


def clean(text: Any, max_chars: int | None = MAX_CHARS) -> str:
    """Text with its hidden and acting characters shown, at most `max_chars` of it; not yet escaped. "" for None."""
    return visible(cut("" if text is None else str(text), max_chars))


def one_line(text: Any, max_chars: int | None) -> str:
    """As `clean`, on one line."""
    return clean(text, max_chars).replace("\n", " ")


def told_apart(names: Sequence[str], most: int) -> list[str]:
    """Names of at most `most` characters for the ends of lines: where one is longer, what all begin with becomes "…".

    >>> told_apart(["runs-with-beta-0.1", "runs-with-beta-0.5"], 14)
    ['…0.1', '…0.5']
    >>> told_apart(["a", "b"], 14)
    ['a', 'b']
    """
    shown = [one_line(name, None) for name in names]
    if all(len(name) <= most for name in shown):
        return shown
    alike = (len(set(letters)) == 1 for letters in zip(*shown, strict=False))
    shared = shown[0][: sum(takewhile(bool, alike))]
    # Whole words, so that 0.1 is not told as 1; a name that is all of another's beginning stays itself.
    shared = shared[: max(map(shared.rfind, "-_/ ")) + 1]
    rest = [f"…{name[len(shared) :]}" if shared else name for name in shown]
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in rest]


def finalize(value: Any) -> Any:
    """jinja2's last step on every `{{ expression }}`: no string reaches the page uncleaned, whoever forgot."""
    if isinstance(value, Markup):
        return value
    return clean(value, None) if isinstance(value, str) else ("" if value is None else value)


def data_block(document: Any) -> Markup:
    """Strict JSON for the inside of a script element of a page: what could end the element or act on whoever reads the
    page's source is `\\uXXXX` there, so that the parsed document is the same."""
    return Markup(_NOT_IN_A_SCRIPT.sub(_escaped, to_json(document)))


_NOT_IN_A_SCRIPT = re.compile(f"[<>&]|{HIDDEN.pattern}")


def _escaped(found: re.Match[str]) -> str:
    units = found.group().encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def exact(value: Any) -> str:
    """Six digits: for parts that a reader may want to add up."""
    return number(value, 6)


def ratio(value: Any) -> str:
    """A factor, as ×1.22."""
    return f"×{number(value, 3)}"


def tick(value: float) -> str:
    """A round value on an axis, without the zeros that carry nothing."""
    return f"{value:.6g}"
