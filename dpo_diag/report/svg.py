"""Small hand-written SVG: scales, ticks, elements. No style attribute (the page's CSP forbids it): colour comes from
classes of the page's style sheet, so that light and dark need one drawing. What a pointer shows is data beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from dpo_diag.report.text import clean, data_block

WIDE, NARROW = 860, 344
CHARACTER = 7.4
"""Mean width in px of a character of the plots' type in a wide font; good enough to reserve room for a label."""


def element(name: str, body: str | Markup = "", **attributes: object) -> Markup:
    """One SVG element; `class_` becomes class, `_` in a name becomes `-`, None is left out, numbers are rounded."""
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, float):
            value = f"{value:.2f}".rstrip("0").rstrip(".")
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(clean(value, None))}"')
    inner = body if isinstance(body, Markup) else escape(clean(body))
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("".join(parts)), inner)


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


@dataclass(frozen=True)
class Scale:
    """Maps data [low, high] to pixels [start, end], linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, x = (
            (math.log(self.low), math.log(self.high), math.log(max(value, 1e-300)))
            if self.log
            else (self.low, self.high, value)
        )
        share = 0.5 if high == low else (x - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def clamped(self, value: float) -> float:
        """As a call, kept inside the pixels."""
        first, last = sorted((self.start, self.end))
        return min(max(self(value), first), last)


def picture(
    width: float, height: float, body: Markup, description: str, axes: tuple[Scale, Scale] | None = None
) -> Markup:
    """The svg element, announced to a screen reader as one image with its description (a table has the rest).

    Args:
        axes: across and up, where the page's script shows values (see `chart`): `data-frame` names their ends as low,
            high, first and last pixel, each, and 1 for a logarithmic one up.
    """
    ends = [v for axis in axes or () for v in (axis.low, axis.high, axis.start, axis.end)]
    frame = " ".join(f"{v:.8g}" for v in [*ends, float(axes[1].log)]) if axes else None
    return element(
        "svg",
        body,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=description,
        class_="plot",
        data_frame=frame,
    )


def chart(drawings: Markup, hover: Mapping[str, Any] | None = None) -> Markup:
    """One chart: its drawings, and the values that the page's script shows under a pointer, a finger or the arrow keys.

    Args:
        hover: "word" and "lines" (see `plots.line_values`), or "points" ([x, y, text]); None for a chart whose marks
            carry their text themselves (`data-tip`).
    """
    values = Markup("")
    if hover is not None:
        values = Markup('<script type="application/json" class="values">{}</script>').format(data_block(hover))
    return Markup('<div class="chart">{}{}</div>').format(drawings, values)


def responsive(draw: Callable[[int], Markup], hover: Mapping[str, Any] | None = None) -> Markup:
    """Two drawings of one chart, for a wide and a narrow window: type keeps its size, the style sheet shows one."""
    both = Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(WIDE), draw(NARROW))
    return chart(both, hover)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2, 2.5, 5 × 10^k) inside [low, high]."""
    if not math.isfinite(low + high) or high <= low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * 0.999999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Values (1, 2, 5 × 10^k) inside [low, high]; whole powers only, thinned, over many decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        ticks = [f * 10.0**k for k in range(first, last + 1) for f in factors if low <= f * 10.0**k <= high * 1.000001]
        if len(ticks) <= count + 2:
            break
    if len(ticks) > count + 2:
        ticks = ticks[:: math.ceil(len(ticks) / count)]
    if len(ticks) >= 2:
        return ticks
    return linear_ticks(low, high, count)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed to lie `gap` apart inside [low, high], order kept."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed: list[list[float]] = []  # clusters: [sum of wanted tops, number]
    for rank, i in enumerate(order):
        placed.append([positions[i] - rank * gap, 1.0])
        while len(placed) > 1 and placed[-2][0] / placed[-2][1] > placed[-1][0] / placed[-1][1]:
            total, number = placed.pop()
            placed[-1][0] += total
            placed[-1][1] += number
    result = [0.0] * len(positions)
    rank = 0
    top = high - (len(positions) - 1) * gap
    for total, number in placed:
        base = min(max(total / number, low), max(top, low))
        for _ in range(int(number)):
            result[order[rank]] = base + rank * gap
            rank += 1
    return result


def text_width(text: str) -> float:
    return CHARACTER * len(text)
