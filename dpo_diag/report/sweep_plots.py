"""What only the page of a sweep draws: its runs as lines over parallel axes, and two outcomes against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dpo_diag.report.svg import NARROW, Scale, element, join, linear_ticks, picture, text_width
from dpo_diag.report.text import one_line, tick

_AXIS_LABEL = 16
"""Characters of an axis's name and of a category."""


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates.

    Attributes:
        label: its name.
        places: of each run its place from 0 (bottom) to 1 (top); None where it has no value.
        ticks: (place, text).
    """

    label: str
    places: list[float | None]
    ticks: list[tuple[float, str]]


def number_axis(label: str, values: Sequence[float | None], log: bool = False) -> Axis:
    """An axis of numbers; logarithmic where all are above 0 and `log`."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return Axis(label, [None] * len(values), [])
    low, high = min(known), max(known)
    log = log and low > 0
    scale = Scale(low, high, 0.0, 1.0, log)
    places = [None if v is None or not math.isfinite(v) else scale(v) for v in values]
    marks = sorted(set(known)) if len(set(known)) <= 5 else [low, *linear_ticks(low, high, 3), high]
    return Axis(label, places, [(scale(v), f"{v:.4g}") for v in dict.fromkeys(marks)])


def category_axis(label: str, values: Sequence[str], order: Sequence[str]) -> Axis:
    """An axis of categories, evenly spaced in their order."""
    step = 1.0 / max(1, len(order) - 1)
    at = {value: i * step if len(order) > 1 else 0.5 for i, value in enumerate(order)}
    return Axis(label, [at[v] for v in values], [(at[v], one_line(v, _AXIS_LABEL)) for v in order])


def parallel(axes: Sequence[Axis], names: Sequence[str], best: int | None, *, width: int, description: str) -> Markup:
    """Each run a line over the axes, knobs first; the best one thick. In a narrow window they lie below one another.

    Args:
        names: of the runs, shown under a pointer.
        best: index of the run that stands out; None for none.
    """
    lying = width <= NARROW
    if lying:
        height = 58.0 * len(axes) + 20
        lines = [Scale(0.0, 1.0, 16, width - 24) for _ in axes]
        fixed = [38 + 58.0 * i for i in range(len(axes))]
    else:
        height = 300.0
        margin = 20 + max((text_width(t) for _, t in axes[0].ticks), default=20.0)
        gap = (width - margin - 90) / max(1, len(axes) - 1)
        lines = [Scale(0.0, 1.0, height - 26, 56) for _ in axes]
        fixed = [margin + gap * i for i in range(len(axes))]
    parts = []
    order = sorted(range(len(names)), key=lambda i: i == best)
    for i in order:
        points = [
            (scale(axis.places[i] or 0.0), at) if lying else (at, scale(axis.places[i] or 0.0))
            for axis, scale, at in zip(axes, lines, fixed, strict=True)
            if axis.places[i] is not None
        ]
        if points:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            kind = "line run-a" if i == best else "line loss thin"
            parts.append(element("path", d=path, class_=kind, data_tip=names[i]))
    for i, (axis, scale, at) in enumerate(zip(axes, lines, fixed, strict=True)):
        (x1, y1), (x2, y2) = ((scale.start, at), (scale.end, at)) if lying else ((at, scale.start), (at, scale.end))
        parts.append(element("line", class_="level", x1=x1, x2=x2, y1=y1, y2=y2))
        # Beside each other the names stand at two heights, so that long ones do not meet.
        x, y = (16.0, at - 14) if lying else (at, 18.0 if i % 2 else 36.0)
        parts.append(
            element("text", one_line(axis.label, None), x=x, y=y, class_="rowname" if lying else "rowname mid")
        )
        last = -math.inf
        for place, text in sorted(axis.ticks):
            along = scale(place)
            room = text_width(text) + 6 if lying else 13
            if abs(along - last) < room:
                continue
            last = along
            if lying:
                anchor = "" if place <= 0 else " end" if place >= 1 else " mid"
                parts.append(element("text", text, x=along, y=at + 14, class_=f"tick{anchor}"))
            else:
                parts.append(element("text", text, x=at + 5, y=along + 4, class_="tick"))
    return picture(width, height, join(parts), description)


@dataclass(frozen=True)
class Point:
    """One run in a plane: where it lies, its short name, and whether it is on the front."""

    x: float
    y: float
    name: str
    front: bool = False


def plane(
    points: Sequence[Point], start: tuple[float | None, float | None], x_label: str, y_label: str, *, width: int,
    description: str,
) -> Markup:  # fmt: skip
    """Two outcomes against each other, those on the front joined and named; the runs' common start as a cross."""
    start_x, start_y = start
    xs = [p.x for p in points] + ([start_x] if start_x is not None else [])
    ys = [p.y for p in points] + ([start_y] if start_y is not None else [])
    height = 300 if width > NARROW else 260

    def around(values: list[float]) -> tuple[float, float]:
        low, high = min(values), max(values)
        pad = (high - low) * 0.12 or abs(high) * 0.1 or 0.1
        return low - pad, high + pad

    across, up = Scale(*around(xs), 58, width - 26), Scale(*around(ys), height - 42, 16)
    parts = []
    for value in linear_ticks(up.low, up.high, 4):
        parts.append(element("line", x1=across.start, x2=across.end, y1=up(value), y2=up(value), class_="grid"))
        parts.append(element("text", tick(value), x=across.start - 8, y=up(value) + 4, class_="tick end"))
    for value in linear_ticks(across.low, across.high, 3 if width <= NARROW else 6):
        parts.append(element("text", tick(value), x=across(value), y=height - 24, class_="tick mid"))
    if start_x is not None and start_y is not None:
        x, y = across(start_x), up(start_y)
        parts.append(element("path", d=f"M{x - 6:.1f} {y:.1f}h12m-6 -6v12", class_="total"))
        parts.append(element("text", "before", x=x + 8, y=y - 6, class_="note"))
    front = sorted((p for p in points if p.front), key=lambda p: p.x)
    if len(front) > 1:
        path = "M" + "L".join(f"{across(p.x):.1f} {up(p.y):.1f}" for p in front)
        parts.append(element("path", d=path, class_="line ref"))
    for p in points:
        kind = "mark score" if p.front else "mark score2"
        parts.append(element("circle", cx=across(p.x), cy=up(p.y), r=5, class_=kind))
    for p in front:
        parts.append(
            element("text", one_line(p.name, _AXIS_LABEL), x=across(p.x) + 8, y=up(p.y) + 14, class_="name score")
        )
    parts.append(element("text", f"{x_label} →", x=across.end, y=height - 6, class_="tick end"))
    parts.append(element("text", f"{y_label} →", x=14, y=up.end, class_="tick end",
                         transform=f"rotate(-90 14 {up.end:.0f})"))  # fmt: skip
    return picture(width, height, join(parts), description, (across, up))
