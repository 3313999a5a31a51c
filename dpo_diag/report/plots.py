"""Lines and bars. Each takes plain numbers and gives an SVG; what to draw is decided by whoever draws. Told apart
without colour too: every series has its own dash and marker, and its name stands at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dpo_diag.report.svg import NARROW, Scale, element, join, linear_ticks, log_ticks, picture, spread, text_width
from dpo_diag.report.text import tick as tick_text
from dpo_diag.text import number

MAX_POINTS = 400
"""Points of one line; a longer series is thinned to the extremes of its stretches, so that no spike is lost."""

BOLD = 1.12
"""How much wider the names at the lines' ends are: they are bold."""
DRAWABLE = 1e300
"""Larger values (a perplexity of a broken model) are marked as lost: no axis could hold them beside others."""


@dataclass(frozen=True)
class Series:
    """One line: `kind` is its style (loss, train, chosen, rejected, score, score2, ref, run-a, run-b; with " thin"
    behind it for training batches beside evaluations, which get no name), `low` and `high` an interval,
    `note` what stands under its name at its end."""

    label: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    kind: str
    low: npt.NDArray[np.float64] | None = None
    high: npt.NDArray[np.float64] | None = None
    note: str = ""

    @property
    def is_thin(self) -> bool:
        """Whether it is noise behind the other lines: no marks."""
        return self.kind == "train" or self.kind.endswith(" thin")


def thin(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], limit: int = MAX_POINTS) -> npt.NDArray[np.int64]:
    """Indices of at most about `limit` points that keep first, last, and each stretch's lowest and highest value."""
    if len(x) <= limit:
        return np.arange(len(x))
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), limit // 2):
        values = y[stretch]
        finite = np.isfinite(values)
        if not finite.all():
            keep.add(int(stretch[~finite][0]))
        if finite.any():
            keep.update((int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])))
    return np.array(sorted(keep))


def marker(kind: str, x: float, y: float, size: float = 3.5) -> Markup:
    """A series' own shape: circle, square, triangle, diamond."""
    name = f"mark {kind}"
    if kind in ("chosen", "run-b"):
        return element("rect", x=x - size, y=y - size, width=2 * size, height=2 * size, class_=name)
    if kind == "rejected":
        s = size * 1.25
        return element("path", d=f"M{x:.1f} {y - s:.1f}l{s:.1f} {1.8 * s:.1f}h{-2 * s:.1f}z", class_=name)
    if kind.startswith("score"):
        s = size * 1.35
        return element(
            "path", d=f"M{x:.1f} {y - s:.1f}l{s:.1f} {s:.1f} {-s:.1f} {s:.1f} {-s:.1f} {-s:.1f}z", class_=name
        )
    return element("circle", cx=x, cy=y, r=size, class_=name)


def _path(points: Sequence[tuple[float, float]], finite: npt.NDArray[np.bool_]) -> str:
    """An SVG path that breaks where a value is NaN or infinite."""
    parts, pen = [], False
    for (x, y), ok in zip(points, finite, strict=True):
        if ok:
            parts.append(f"{'L' if pen else 'M'}{x:.1f} {y:.1f}")
        pen = bool(ok)
    return "".join(parts)


def line_values(
    series: Sequence[Series], word: str = "step", write: Callable[[float], str] = number, points: int = MAX_POINTS
) -> dict[str, Any]:
    """What a chart of these lines shows under a pointer (see `svg.chart`): of every drawn point its step, its value as
    it is printed, and its height where the printed form is no plain number."""
    lines = []
    for s in series:
        keep = thin(s.x, s.y, points)
        texts = [_with_interval(s, i, write) for i in keep]
        line: dict[str, Any] = {"n": s.label, "k": s.kind, "x": [_whole(x) for x in s.x[keep]], "t": texts}
        if any(not _is_plain(text) for text in texts):
            line["y"] = [float(f"{v:.5g}") for v in s.y[keep]]
        lines.append(line)
    return {"word": word, "lines": lines}


def _whole(x: float) -> float | int:
    return int(x) if x == int(x) else float(x)


def _with_interval(s: Series, i: int, write: Callable[[float], str]) -> str:
    text = write(float(s.y[i]))
    known = s.low is not None and s.high is not None and math.isfinite(s.low[i]) and math.isfinite(s.high[i])
    return f"{text} ({write(float(s.low[i]))} to {write(float(s.high[i]))})" if known else text  # type: ignore[index]


def _is_plain(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def line_chart(
    series: Sequence[Series],
    *,
    width: int,
    height: int,
    description: str,
    log: bool = False,
    tick: Callable[[float], str] = tick_text,
    level: float | None = None,
    marks: Sequence[tuple[int, str]] = (),
    x_label: str = "step",
    show_x: bool = True,
    right: float | None = None,
    x_range: tuple[float, float] | None = None,
    points: int = MAX_POINTS,
) -> Markup:
    """Lines over steps with their names at their ends.

    Args:
        series: lines; values that are not finite break a line and are marked at the top edge.
        x_label: what a number on the axis is called: step, or row.
        level: a horizontal line to compare with, e.g. the start.
        marks: vertical lines (step, name).
        right: px kept for the names; found from their length if None.
        x_range: steps that the axis covers at least, so that panels under one another share it.
        points: of one line at most, about; `line_values` takes the same.
    """
    series = [replace(s, y=np.where(np.abs(s.y) < DRAWABLE, s.y, np.nan)) for s in series]
    finite_y = [v for s in series for part in (s.y, s.low, s.high) if part is not None for v in part[np.isfinite(part)]]
    if level is not None:
        finite_y.append(level)
    xs = np.concatenate([s.x for s in series] + ([np.array(x_range)] if x_range else [])) if series else np.zeros(0)
    if not len(finite_y) or not len(xs):
        return picture(width, 40, element("text", "no finite value to draw", x=8, y=24, class_="note"), description)
    low, high = float(min(finite_y)), float(max(finite_y))
    if log:
        log = low > 0 and math.log10(high) - math.log10(low) < 100
    if log:
        factor = max(high / low, 1.02) ** 0.06
        low, high = low / factor, high * factor
    else:
        pad = (high - low) * 0.07 or abs(high) * 0.05 or 1.0
        low, high = low - pad, high + pad
    ticks = (log_ticks if log else linear_ticks)(low, high, 4 if height < 170 else 5)
    tick_texts = [tick(t) for t in ticks]
    left = max(12 + max(text_width(t) for t in tick_texts), 48.0)
    names = (
        right
        if right is not None
        else 18
        + max(
            (max(BOLD * text_width(s.label), text_width(s.note)) for s in series if not s.kind.endswith(" thin")),
            default=0.0,
        )
    )
    names = min(names, width * 0.44)
    bottom = 24 if show_x else 10
    across = Scale(float(xs.min()), float(xs.max()), left, width - names)
    up = Scale(low, high, height - bottom, 14, log)
    parts = []
    for value, text in zip(ticks, tick_texts, strict=True):
        parts.append(element("line", x1=left, x2=width - names, y1=up(value), y2=up(value), class_="grid"))
        parts.append(element("text", text, x=left - 8, y=up(value) + 4, class_="tick end"))
    for step, name in marks:
        if xs.min() < step < xs.max():
            x = across(step)
            parts.append(element("line", x1=x, x2=x, y1=14, y2=height - bottom, class_="moment"))
            parts.append(element("text", name, x=x, y=10, class_="note mid"))
    if level is not None:
        y = up(level)
        parts.append(element("line", x1=left, x2=width - names, y1=y, y2=y, class_="level"))
    for s in series:
        parts.append(_line(s, across, up, points))
    parts.append(_names(series, across, up, 14, height - bottom))
    if show_x:
        parts.append(element("line", x1=left, x2=width - names, y1=height - bottom, y2=height - bottom, class_="axis"))
        count = 4 if width <= NARROW else 8
        for i, value in enumerate(linear_ticks(float(xs.min()), float(xs.max()), count)):
            if value == int(value) or xs.max() - xs.min() < 3:
                text = f"{x_label} {tick_text(value)}" if i == 0 else tick_text(value)
                parts.append(element("text", text, x=across(value), y=height - bottom + 16, class_="tick mid"))
    return picture(width, height, join(parts), description, (across, up))


def _line(s: Series, across: Scale, up: Scale, points: int) -> Markup:
    parts = []
    if s.low is not None and s.high is not None:
        ok = np.isfinite(s.low) & np.isfinite(s.high)
        top = [f"{across(x):.1f} {up.clamped(v):.1f}" for x, v in zip(s.x[ok], s.high[ok], strict=True)]
        base = [f"{across(x):.1f} {up.clamped(v):.1f}" for x, v in zip(s.x[ok][::-1], s.low[ok][::-1], strict=True)]
        if top:
            parts.append(element("path", d="M" + "L".join(top + base) + "Z", class_=f"band {s.kind}"))
    keep = thin(s.x, s.y, points)
    x, y = s.x[keep], s.y[keep]
    finite = np.isfinite(y)
    places = [(across(a), up.clamped(b) if ok else 0.0) for a, b, ok in zip(x, y, finite, strict=True)]
    parts.append(element("path", d=_path(places, finite), class_=f"line {s.kind}"))
    if len(x) <= 40 and not s.is_thin:
        parts += [marker(s.kind, px, py) for (px, py), ok in zip(places, finite, strict=True) if ok]
    for step in x[~finite][:20]:
        parts.append(element("text", "✕", x=across(float(step)), y=up.end + 4, class_=f"lost mid {s.kind}"))
    return join(parts)


def _names(series: Sequence[Series], across: Scale, up: Scale, top: float, bottom: float) -> Markup:
    ends = []
    for s in series:
        ok = np.flatnonzero(np.isfinite(s.y))
        if len(ok) and not s.kind.endswith(" thin"):
            ends.append((s, across(float(s.x[ok[-1]])), up.clamped(float(s.y[ok[-1]]))))
    gap = 30 if any(s.note for s, _, _ in ends) else 15
    places = spread([y for _, _, y in ends], gap, top, bottom - gap + 15)
    parts = []
    for (s, x, y), place in zip(ends, places, strict=True):
        path = f"M{x + 5:.1f} {y:.1f}L{across.end + 8:.1f} {place:.1f}"
        early = " early" if across.end - x > 20 else ""  # no stretch of the line itself
        parts.append(element("path", d=path, class_=f"lead {s.kind}{early}"))
        parts.append(element("text", s.label, x=across.end + 11, y=place + 4, class_=f"name {s.kind}"))
        if s.note:
            parts.append(element("text", s.note, x=across.end + 11, y=place + 18, class_="note"))
    return join(parts)


@dataclass(frozen=True)
class Bar:
    """One floating bar from `start` to `end`; `kind` is its style, `text` stands beside it."""

    start: float
    end: float
    kind: str
    text: str = ""


@dataclass(frozen=True)
class BarRow:
    """One row of a bar chart: its name, its bars, an optional mark (the total), and the text at the right."""

    label: str
    bars: tuple[Bar, ...]
    total: float | None = None
    text: str = ""
    new_group: bool = False


def bar_chart(
    rows: Sequence[BarRow],
    *,
    width: int,
    description: str,
    zero: bool = True,
    axis: str = "",
    tick: Callable[[float], str] = tick_text,
) -> Markup:
    """Horizontal floating bars, one row each, on one shared axis; wide: names left, texts right; narrow: above."""
    values = [v for r in rows for b in r.bars for v in (b.start, b.end)] + [
        r.total for r in rows if r.total is not None
    ]
    finite = [v for v in values if math.isfinite(v)] + ([0.0] if zero else [])
    if not finite:
        return picture(width, 40, element("text", "no finite value to draw", x=8, y=24, class_="note"), description)
    low, high = min(finite), max(finite)
    pad = (high - low) * 0.05 or 0.1
    stacked = width <= NARROW
    left = 8.0 if stacked else 14 + max(text_width(r.label) for r in rows)
    end = width - (8.0 if stacked else 16 + max(text_width(r.text) for r in rows))
    across = Scale(low - pad, high + pad, left, end)
    row_height = 46 if stacked else 32
    parts, y = [], 8.0
    middles = []
    for row in rows:
        if row.new_group:
            y += 12
        middles.append(y + row_height - 16)
        y += row_height
    base = y + 2
    for value in linear_ticks(low - pad, high + pad, 3 if stacked else 6):
        parts.append(element("line", x1=across(value), x2=across(value), y1=4, y2=base, class_="grid"))
        parts.append(element("text", tick(value), x=across(value), y=base + 16, class_="tick mid"))
    if zero:
        parts.append(element("line", x1=across(0), x2=across(0), y1=4, y2=base, class_="level"))
    for row, middle in zip(rows, middles, strict=True):
        if stacked:
            parts.append(element("text", row.label, x=left, y=middle - 13, class_="rowname"))
            parts.append(element("text", row.text, x=end, y=middle - 13, class_="rowtext end"))
        else:
            parts.append(element("text", row.label, x=left - 10, y=middle + 4, class_="rowname end"))
            parts.append(element("text", row.text, x=end + 10, y=middle + 4, class_="rowtext"))
        for bar in row.bars:
            if not math.isfinite(bar.start + bar.end):
                continue
            first, last = sorted((across(bar.start), across(bar.end)))
            tip, long = f"{row.label}: {bar.text}", max(last - first, 1.5)
            parts.append(
                element("rect", x=first, y=middle - 8, width=long, height=16, class_=f"bar {bar.kind}", data_tip=tip)
            )
        if row.total is not None and math.isfinite(row.total):
            x = across(row.total)
            parts.append(element("line", x1=x, x2=x, y1=middle - 10, y2=middle + 10, class_="total"))
    height = base + (36 if axis else 22)
    if axis:
        parts.append(element("text", axis, x=(left + end) / 2, y=height - 4, class_="tick mid"))
    return picture(width, height, join(parts), description)
