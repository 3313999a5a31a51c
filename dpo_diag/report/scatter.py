"""The quadrant scatter: one point per pair, Δ chosen across, Δ rejected up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dpo_diag.report.svg import NARROW, Scale, element, join, linear_ticks, picture
from dpo_diag.report.text import tick
from dpo_diag.text import percent, signed

MAX_DOTS = 1_500


def limits(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """An axis range around zero and the values; far outliers stay at the edge, so that they do not flatten the rest."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return -1.0, 1.0
    low, high = np.quantile(finite, [0.01, 0.99])
    reach = max(high - low, 1e-6)
    low, high = max(finite.min(), low - 0.5 * reach), min(finite.max(), high + 0.5 * reach)
    low, high = min(low, 0.0), max(high, 0.0)
    pad = max((high - low) * 0.11, 1e-6)
    return float(low - pad), float(high + pad)


def drawn_dots(chosen: npt.NDArray[np.float64], rejected: npt.NDArray[np.float64], labels: list[str]) -> list[int]:
    """Which pairs are drawn: those known on both sides, evenly thinned, then the labelled ones."""
    ok = np.flatnonzero(np.isfinite(chosen) & np.isfinite(rejected)).tolist()
    plain = [i for i in ok if not labels[i]]
    if len(plain) > MAX_DOTS:
        plain = [plain[i] for i in np.linspace(0, len(plain) - 1, MAX_DOTS).astype(int)]
    return [*plain, *(i for i in ok if labels[i])]


def dot_values(
    chosen: npt.NDArray[np.float64], rejected: npt.NDArray[np.float64], labels: list[str], names: list[str]
) -> dict[str, Any]:
    """What the drawn pairs show under a pointer (see `svg.chart`): each by its name, named ones by their number too."""
    points = []
    for i in drawn_dots(chosen, rejected, labels):
        a, b = float(chosen[i]), float(rejected[i])
        name = f"{labels[i]}. {names[i]}" if labels[i] else names[i]
        points.append([float(f"{a:.5g}"), float(f"{b:.5g}"), f"{name}\nchosen {signed(a)}, rejected {signed(b)} nats"])
    return {"points": points}


def quadrant_scatter(
    chosen: npt.NDArray[np.float64],
    rejected: npt.NDArray[np.float64],
    labels: list[str],
    shares: dict[str, float],
    *,
    width: int,
    description: str,
) -> Markup:
    """Points with the four quadrants' shares in the corners; labelled points are drawn last, with their label.

    Args:
        chosen, rejected: change of each side's sum of log-probs (nats), shape (pairs,).
        labels: "" or the rank of a named pair, shape (pairs,).
        shares: quadrant -> share of pairs (both_rose, chosen_rose, rejected_rose, both_fell).
    """
    narrow = width <= NARROW
    height = int(width * 0.92) if narrow else 440
    across = Scale(*limits(chosen), 52, width - 14)
    up = Scale(*limits(rejected), height - 44, 12)
    x0, y0 = across(0.0), up(0.0)
    parts = [
        element("rect", x=across.start, y=y0, width=x0 - across.start, height=up.start - y0, class_="quad fell"),
        element("rect", x=across.start, y=up.end, width=x0 - across.start, height=y0 - up.end, class_="quad wrong"),
        element("rect", x=x0, y=y0, width=across.end - x0, height=up.start - y0, class_="quad wanted"),
    ]
    for value in linear_ticks(across.low, across.high, 4 if narrow else 8):
        parts.append(element("line", x1=across(value), x2=across(value), y1=up.end, y2=up.start, class_="grid"))
        parts.append(element("text", tick(value), x=across(value), y=up.start + 16, class_="tick mid"))
    for value in linear_ticks(up.low, up.high, 5):
        parts.append(element("line", x1=across.start, x2=across.end, y1=up(value), y2=up(value), class_="grid"))
        parts.append(element("text", tick(value), x=across.start - 6, y=up(value) + 4, class_="tick end"))
    parts.append(element("line", x1=x0, x2=x0, y1=up.end, y2=up.start, class_="level"))
    parts.append(element("line", x1=across.start, x2=across.end, y1=y0, y2=y0, class_="level"))
    shown = drawn_dots(chosen, rejected, labels)
    parts += [_dot(across, up, float(chosen[i]), float(rejected[i])) for i in shown if not labels[i]]
    for i in (i for i in shown if labels[i]):
        x, y = across.clamped(float(chosen[i])), up.clamped(float(rejected[i]))
        ring = element("circle", cx=x, cy=y, r=8, class_="named")
        text = element("text", labels[i], x=x, y=y + 3.5, class_="namedtext mid")
        parts += [ring, text]
    parts.append(_corners(shares, across, up, narrow))
    parts.append(element("text", "Δ chosen, nats →", x=across.end, y=height - 6, class_="tick end"))
    parts.append(
        element(
            "text", "Δ rejected, nats →", x=14, y=up.end, class_="tick end", transform=f"rotate(-90 14 {up.end:.0f})"
        )
    )
    return picture(width, height, join(parts), description, (across, up))


def _dot(across: Scale, up: Scale, x: float, y: float) -> Markup:
    kind = "fell" if x < 0 and y < 0 else "wanted" if x >= 0 > y else "wrong" if x < 0 else "rose"
    px, py = across.clamped(x), up.clamped(y)
    outside = not (across.low <= x <= across.high and up.low <= y <= up.high)
    if outside:
        return element("path", d=f"M{px - 4:.1f} {py:.1f}h8m-4 -4v8", class_=f"dot edge {kind}")
    return element("circle", cx=px, cy=py, r=2.6, class_=f"dot {kind}")


def _corners(shares: dict[str, float], across: Scale, up: Scale, narrow: bool) -> Markup:
    names = {
        "rejected_rose": ("opposite", across.start + 8, up.end + 20, ""),
        "both_rose": ("both rose", across.end - 8, up.end + 20, " end"),
        "both_fell": ("both fell", across.start + 8, up.start - 10, ""),
        "chosen_rose": ("wanted", across.end - 8, up.start - 10, " end"),
    }
    parts = []
    for key, (name, x, y, anchor) in names.items():
        room = (across(0) - across.start) if not anchor else (across.end - across(0))
        text = f"{percent(shares.get(key))} {name}" if room > (90 if narrow else 110) else percent(shares.get(key))
        if room > 26:
            parts.append(element("text", text, x=x, y=y, class_=f"corner{anchor}"))
    return join(parts)
