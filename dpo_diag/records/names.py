"""Names that become folders and files, of a run, an experiment, a split: nothing ever lands elsewhere."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from dpo_diag.errors import DiagError

LONGEST = 120
"""Bytes of a name in UTF-8; file systems take 255, and something always stands behind it."""
_UNSEEN = frozenset(("Cc", "Cs", "Zl", "Zp"))
_TURNED = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of what stands behind them."""


def check_name(name: str, where: str, elsewhere: str | None = None) -> str:
    """A name that the user gave, if it names a folder below another one; `a/b` is a folder in a folder.

    >>> check_name("vergleich β", "name"), check_name("sql/high", "name")
    ('vergleich β', 'sql/high')

    Args:
        elsewhere: what the user can do who wants another place.

    Raises:
        DiagError: a name that leads elsewhere (.., /, C:), is empty or too long, or holds what nobody sees.
    """
    parts = re.split(r"[/\\]", name)
    if any(unicodedata.category(c) in _UNSEEN or c in _TURNED for c in name):
        why = "a character that cannot be seen"
    elif any(part.strip() in ("", ".", "..") for part in parts) or re.match(r"~|[A-Za-z]:", name):
        why = "a path that leads elsewhere"
    elif any(len(part.encode()) > LONGEST for part in parts):
        why = f"{max(len(part.encode()) for part in parts)} bytes"
    else:
        return name
    shown = ascii(name if len(name) <= 60 else f"{name[:60]}...")
    raise DiagError(
        "not a name for a folder", where=where, got=f"{shown}: {why}",
        expected=f"letters, digits, blanks, . _ -; up to {LONGEST} bytes",
        hint=elsewhere, usage=True,
    )  # fmt: skip


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text as a part of a file's name: as it is up to `longest` bytes, else its beginning and a hash of the whole.

    >>> shortened("a" * 200, 20)
    'aaaaaaa-c2a908d98f5d'
    """
    if len(text.encode("utf-8", "surrogatepass")) <= longest:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    kept = text.encode("utf-8", "surrogatepass")[: longest - 13].decode("utf-8", "ignore")
    return f"{kept}-{digest}"
