"""Small charts of whatever a history holds, in the order and the words of the metric table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from dpo_diag.diagnosis.evidence import SCORE
from dpo_diag.records.metric_table import METRICS, Metric, metric_of, side_of
from dpo_diag.records.schemas import SIDES, TRAIN_SPLIT
from dpo_diag.report.plots import Series, line_chart, line_values
from dpo_diag.report.svg import NARROW, chart
from dpo_diag.text import capital, number

HEIGHT, POINTS = 150, 160
LOGARITHMIC = ("ratio", "norm")
"""Units of which a factor says more than a difference."""
COUNTER = "tokens"
"""Unit of what only counts up."""


@dataclass(frozen=True)
class Panel:
    """What one chart shows: a metric, with its sides where it has some.

    Attributes:
        title: in words, with its unit.
        names: history name -> what the line is called; "" where the title says it.
        log: whether the axis is logarithmic where the values allow it.
    """

    title: str
    names: dict[str, str]
    log: bool


@dataclass(frozen=True)
class SmallChart:
    """A panel as a page shows it."""

    title: str
    chart: Markup


def panels(names: Iterable[str], *, apart: bool = False) -> list[Panel]:
    """Of history names those that the metric table knows, counters and task scores aside: one panel per metric.

    Args:
        apart: each side in a panel of its own, for charts whose lines are several runs.
    """
    given = set(names)
    order = {name: i for i, name in enumerate(METRICS)}
    grouped: dict[str, dict[str, str]] = {}
    units: dict[str, Metric] = {}
    # What is of whole pairs or of the optimiser comes before what is of one side: the loss first.
    known = [(metric.sides, order.get(n, order.get(n.partition("/")[0], 0)), n, metric)
             for n in given if (metric := metric_of(n)) is not None]  # fmt: skip
    for _, _, name, metric in sorted(known, key=lambda one: one[:3]):
        side = side_in(name)
        if metric.unit == COUNTER or name.startswith(SCORE):
            continue
        base = name.removesuffix(f"/{side}") if side else name
        key = name if apart else base
        grouped.setdefault(key, {})[name] = "" if apart else side or ""
        units.setdefault(key, metric)
    return [_panel(lines, units[key], apart) for key, lines in grouped.items()]


def side_in(name: str) -> str | None:
    """The side that a history name names, those included that the metric table holds as a metric of their own.

    >>> [side_in(name) for name in ("ce/chosen", "rewards/rejected", "rewards/margins", "pairs/chosen_fell", "loss")]
    ['chosen', 'rejected', None, None, None]
    """
    last = name.rpartition("/")[2]
    return side_of(name) or (last if last in SIDES and name != last else None)


def _panel(lines: dict[str, str], metric: Metric, apart: bool) -> Panel:
    sides = [side for name in lines if (side := side_in(name))]
    label = metric.label.replace("{side} ", "")
    for side in sides:
        label = label.removeprefix(f"{side} ")
    several = len(lines) > 1
    if sides and (apart or not several):
        label = f"{sides[0]} {label}"
    unit = "" if metric.unit in label or metric.unit == "ratio" else f", {metric.unit}"
    named = {name: (line or "both") if several else "" for name, line in lines.items()}
    return Panel(capital(label) + unit, named, metric.unit in LOGARITHMIC)


def lines_of(history: pd.DataFrame, panel: Panel, split: str | None) -> list[Series]:
    """The panel's lines of a split, and thin ones of the training batches beside them; [] without a finite value."""
    drawn = []
    for of_split in dict.fromkeys((split, TRAIN_SPLIT)):
        rows = history.loc[history["split"] == of_split]
        thin = " thin" if of_split == TRAIN_SPLIT and of_split != split else ""
        for name, label in panel.names.items():
            own = rows.loc[rows["name"] == name]
            if own["value"].notna().any():
                side = side_in(name)
                kind = side if side in SIDES else "loss"
                called = ", ".join(word for word in (label, "training" if thin else "") if word)
                x, y = (own[c].to_numpy(dtype=float) for c in ("step", "value"))
                drawn.append(Series(called, x, y, f"{kind}{thin}", note="" if thin else number(y[-1], 3)))
    return drawn


def draw(panel: Panel, lines: Sequence[Series], word: str, x_range: tuple[float, float] | None = None) -> SmallChart:
    """The panel as a chart that fits a narrow window, and two beside each other in a wide one."""
    picture = line_chart(
        lines,
        width=NARROW,
        height=HEIGHT,
        log=panel.log,
        description=panel.title,
        x_label=word,
        x_range=x_range,
        points=POINTS,
    )
    named = [Series(s.label or panel.title, s.x, s.y, s.kind, s.low, s.high) for s in lines]
    return SmallChart(panel.title, chart(picture, line_values(named, word, points=POINTS)))
