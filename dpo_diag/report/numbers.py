"""How the report writes numbers: one place, so that a table and the plot above it never disagree."""

from __future__ import annotations

import math
from typing import Any

MINUS = "−"


def number(value: Any, digits: int = 4) -> str:
    """A number for people: `digits` significant, a true minus sign; "–" for None, "NaN" and "∞" by name."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    try:
        x = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else f"{MINUS}∞"
    if x == int(x) and abs(x) < 1e6:
        text = str(int(x))
    elif 1e-3 <= abs(x) < 1e6:
        rounded = float(f"{abs(x):.{digits - 1}e}")  # 0.0099999 has the magnitude of 0.01
        decimals = max(0, digits - 1 - math.floor(math.log10(rounded)))
        text = f"{x:.{decimals}f}"
    else:
        text = f"{x:.{digits - 1}g}"
    return text.replace("-", MINUS)


def signed(value: Any, digits: int = 3) -> str:
    """As `number`, with a plus sign in front of what rose."""
    text = number(value, digits)
    return f"+{text}" if (text[:1].isdigit() and text != "0") or text == "∞" else text


def percent(share: Any, digits: int = 0) -> str:
    """A share in [0, 1] as a percentage; "–" for None or NaN."""
    if share is None or (isinstance(share, float) and math.isnan(share)):
        return "–"
    return f"{100 * float(share):.{digits}f} %".replace("-", MINUS)


def ratio(value: Any) -> str:
    """A factor, as ×1.22."""
    return f"×{number(value, 3)}"


def tick(value: float) -> str:
    """A round value on an axis, without the zeros that carry nothing."""
    return f"{value:.6g}".replace("-", MINUS)
