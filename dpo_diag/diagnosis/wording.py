"""How the explanation says a number: one way for each kind, and foreign text made harmless."""

from __future__ import annotations

import math
from typing import Any

Sentence = dict[str, Any]
SNIPPET = 160


def say(text: str, *keys: str) -> Sentence:
    """A sentence and the keys of the document that it rests on."""
    return {"text": text, "from": list(keys)}


def number(value: float | None) -> str:
    """Four significant digits; "unknown" for None, NaN and infinities."""
    return "unknown" if value is None or not math.isfinite(value) else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"


def moved(before: float, after: float) -> str:
    """ "rose 1 → 2", "fell 2 → 1", or "stayed at 1" where the shown digits do not differ."""
    if number(before) == number(after):
        return f"stayed at {number(before)}"
    return f"{'rose' if after > before else 'fell'} {number(before)} → {number(after)}"


def interval(bounds: list[float] | None) -> str:
    """An interval with its level, or that there is none."""
    return f"95 % interval {bounds[0]:+.3g} to {bounds[1]:+.3g}" if bounds else "no interval"


def uncertain(bounds: list[float] | None) -> str:
    """A remark where the interval holds 0."""
    return ": its direction is not certain" if bounds and bounds[0] <= 0.0 <= bounds[1] else ""


def capital(text: str) -> str:
    """The first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def escape_text(text: str, limit: int = SNIPPET) -> str:
    """Foreign text in one line: control and other unprintable characters as \\xNN or \\uNNNN, cut at `limit`."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
