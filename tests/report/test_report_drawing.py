"""Numbers, scales, labels, and the four plots."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from dpo_diag.report.plots import Bar, BarRow, Series, bar_chart, line_chart, line_values, thin
from dpo_diag.report.scatter import dot_values, limits, quadrant_scatter
from dpo_diag.report.svg import Scale, element, linear_ticks, log_ticks, spread
from dpo_diag.report.text import ratio, tick


def test_factors_and_ticks_carry_no_empty_zeros() -> None:
    assert [ratio(1.224), tick(0.55), tick(-2.5)] == ["×1.22", "0.55", "-2.5"]


def test_ticks_are_round_and_inside() -> None:
    assert linear_ticks(0.53, 0.71) == pytest.approx([0.55, 0.6, 0.65, 0.7])
    assert linear_ticks(-12, 1, 6) == [-10, -7.5, -5, -2.5, 0]
    assert log_ticks(1.2, 3.6) == [1.5, 2, 3]
    assert log_ticks(1, 1e12, 5)[:2] == [1, 1000]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_every_tick_lies_inside_its_range(low: float, width: float) -> None:
    high = low + width
    if high > low:
        slack = width * 1e-6
        assert all(low - slack <= t <= high + slack for t in linear_ticks(low, high))


@given(st.lists(st.floats(0, 300), min_size=1, max_size=8), st.floats(1, 20))
def test_labels_keep_their_distance_order_and_frame(positions: list[float], gap: float) -> None:
    placed = spread(positions, gap, 0, 300)
    order = np.argsort(positions, kind="stable")
    assert (np.diff(np.array(placed)[order]) >= gap - 1e-6).all()
    assert min(placed) >= -1e-9
    assert max(placed) <= 300 + 1e-6


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([10, 200, 100], 15, 0, 300) == [10, 200, 100]
    assert spread([100, 100], 15, 0, 300) == [92.5, 107.5]


def test_a_scale_maps_ends_and_middle() -> None:
    """Linear 0..10 to 100..200; logarithmic 1..100: 10 is half way."""
    assert [Scale(0, 10, 100, 200)(v) for v in (0, 5, 10)] == [100, 150, 200]
    assert Scale(1, 100, 0, 200, log=True)(10) == pytest.approx(100)
    assert Scale(0, 10, 200, 100).clamped(99) == 100


def test_a_thinned_line_keeps_its_spikes_and_gaps() -> None:
    y = np.zeros(10_000)
    y[1234], y[8000] = 50.0, np.nan
    keep = thin(np.arange(10_000.0), y)
    assert len(keep) <= 402 + 1
    assert {0, 1234, 8000, 9999} <= set(keep.tolist())


def test_an_element_escapes_what_it_is_given() -> None:
    drawn = element("text", '<script>"\u202e', class_='a"b')
    assert drawn == '<text class="a&#34;b">&lt;script&gt;&#34;&lt;U+202E&gt;</text>'


def line(y: list[float], kind: str = "loss", label: str = "loss") -> Series:
    return Series(label, np.arange(len(y), dtype=float), np.array(y), kind)


def test_a_line_breaks_where_a_value_is_lost_and_says_so() -> None:
    drawn = line_chart([line([1.0, math.nan, 2.0, 3.0])], width=860, height=200, description="d")
    path = re.search(r'd="([^"]*)" class="line loss"', drawn)
    assert path is not None
    assert path.group(1).count("M") == 2
    assert drawn.count("✕") == 1
    assert 'role="img" aria-label="d"' in drawn


def test_series_differ_by_marker_not_only_by_colour() -> None:
    drawn = line_chart(
        [line([1, 2]), line([2, 3], "chosen", "chosen"), line([3, 4], "rejected", "rejected")],
        width=860, height=200, description="d",
    )  # fmt: skip
    assert (drawn.count('class="mark loss"'), drawn.count('class="mark chosen"')) == (2, 2)
    assert "<circle cx" in drawn and "<rect x" in drawn and "<path d" in drawn


@pytest.mark.parametrize("width", [860, 344])
def test_names_stand_inside_the_picture(width: int) -> None:
    drawn = line_chart([line([1, 2], label="execution accuracy")], width=width, height=200, description="d")
    x = float(re.search(r'x="([\d.]+)"[^>]*class="name loss"', drawn).group(1))  # type: ignore[union-attr]
    assert x < width - 20


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, math.nan]])
def test_nothing_finite_is_said_not_drawn(values: list[float]) -> None:
    assert "no finite value to draw" in line_chart([line(values)], width=860, height=200, description="d")


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6), st.booleans())
def test_any_values_give_a_picture(values: list[float], log: bool) -> None:
    drawn = line_chart([line(values)], width=344, height=160, description="d", log=log)
    assert drawn.startswith("<svg")
    assert not re.search(r'="[^"]*(nan|inf)', drawn)


def test_bars_float_between_their_ends_and_carry_a_total() -> None:
    """Bars from 0 to 0.3 and on to 0.4 lie end to end; the stroke stands at 0.4."""
    row = BarRow("chosen", (Bar(0.0, 0.3, "chosen", "+0.3"), Bar(0.3, 0.4, "chosen other", "+0.1")), 0.4, "text")
    drawn = bar_chart([row], width=860, description="d")
    bars = [(float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)]
    assert bars[0][0] + bars[0][1] == pytest.approx(bars[1][0], abs=0.02)
    assert bars[0][1] == pytest.approx(3 * bars[1][1], rel=0.01)
    total = float(re.search(r'x1="([\d.]+)"[^>]*class="total"', drawn).group(1))  # type: ignore[union-attr]
    assert total == pytest.approx(bars[1][0] + bars[1][1], abs=0.02)


def test_outliers_do_not_flatten_the_scatter() -> None:
    values = np.concatenate([np.linspace(-3, 1, 500), [-5000.0]])
    low, high = limits(values)
    assert -10 < low < -3
    assert 1 < high < 3
    assert limits(np.array([np.nan])) == (-1.0, 1.0)


def test_the_scatter_marks_named_pairs_and_shares() -> None:
    shares = {"both_rose": 0.0, "chosen_rose": 0.5, "rejected_rose": 0.0, "both_fell": 0.5}
    drawn = quadrant_scatter(
        np.array([-2.0, 1.0, np.nan]), np.array([-1.0, -2.0, 1.0]), ["1", "", ""], shares, width=860, description="d"
    )
    assert re.search(r'data-frame="[-\d. e]+"', drawn)
    assert drawn.count('class="dot wanted"') == 1
    assert drawn.count("50 %") == 2


def test_the_picture_is_markup() -> None:
    assert isinstance(line_chart([line([1, 2])], width=860, height=200, description="<b>"), Markup)


def test_what_a_pointer_shows_is_what_is_printed() -> None:
    """As `number` prints it, with an interval where there is one; heights only where the text is no number."""
    x = np.array([0.0, 20.0])
    score = Series("acc", x, np.array([0.5, 0.25]), "score", np.array([0.4, np.nan]), np.array([0.6, np.nan]))
    lost = Series("loss", x, np.array([0.693147, np.nan]), "loss")
    values = line_values([score, lost], "row")
    assert values["word"] == "row"
    assert values["lines"][0] == {
        "n": "acc", "k": "score", "x": [0.0, 20.0], "t": ["0.5000 (0.4000 to 0.6000)", "0.2500"], "y": [0.5, 0.25],
    }  # fmt: skip
    assert values["lines"][1]["t"] == ["0.6931", "NaN"]
    long = Series("loss", np.arange(5000.0), np.sin(np.arange(5000.0)), "loss")
    assert len(line_values([long], points=160)["lines"][0]["x"]) <= 162
    assert "y" not in line_values([Series("loss", x, np.array([0.693147, 2.0]), "loss")])["lines"][0]


def test_pairs_are_shown_by_their_names_the_numbered_ones_last() -> None:
    points = dot_values(np.array([-2.0, 1.0, np.nan]), np.array([-1.0, -2.0, 1.0]), ["1", "", ""], ["a", "b", "c"])
    assert points == {
        "points": [
            [1.0, -2.0, "b\nchosen +1, rejected -2 nats"],
            [-2.0, -1.0, "1. a\nchosen -2, rejected -1 nats"],
        ]
    }
