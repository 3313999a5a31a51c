"""Both ends of a series: which rows they are, what they are called, and how sure the change is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_diag.ends import ends_of


def test_the_known_start_comes_before_the_first_row() -> None:
    """Eight rows: k = 3 (the least that scatter), the last three .5 each; the change from ln 2 is -.1931. Differences
    -.07 -.05 -.05 and four of 0: noise sqrt(.0099 / 7 / 2) = .02659, t(4) .975 = 2.776: +- 2.776 .02659 / sqrt 3."""
    values = [0.67, 0.6, 0.6, 0.55, 0.5, 0.5, 0.5, 0.5]
    found = ends_of(values, range(10, 90, 10), reference=math.log(2))
    assert (found.start, found.end, found.k, found.rows) == (math.log(2), pytest.approx(0.5), 3, 8)
    assert (found.start_is, found.end_is) == ("the reference", "the mean of the last 3 of 8 rows")
    assert (found.first, found.first_step, found.last) == (0.67, 10, 0.5)
    assert found.change.bounds == [
        pytest.approx(-0.19315 - 0.04263, abs=1e-4),
        pytest.approx(-0.19315 + 0.04263, abs=1e-4),
    ]


def test_a_row_of_step_0_is_the_start_itself() -> None:
    found = ends_of([0.71, 0.5], [0, 10], batches=False, reference=math.log(2))
    assert (found.start, found.end, found.start_is, found.end_is) == (0.71, 0.5, "the first row", "the last row")


@pytest.mark.parametrize(
    ("values", "start", "end", "words"),
    [
        ([], None, None, ("", "")),
        ([math.nan], None, None, ("", "")),
        ([0.5], None, 0.5, ("", "the only row")),
        ([0.5, 0.4], 0.5, 0.4, ("the first row", "the last row")),
        ([1.1, 0.9, 0.6, 0.4], 1.0, 0.5, ("the mean of the first 2 rows", "the mean of the last 2 of 4 rows")),
    ],
)
def test_few_rows(values: list[float], start: float | None, end: float | None, words: tuple[str, str]) -> None:
    found = ends_of(values, range(1, len(values) + 1))
    document = found.document()
    assert (document["from"], document["to"]) == (start, end) and (found.start_is, found.end_is) == words


def test_one_row_and_a_known_start_are_two_points() -> None:
    found = ends_of([0.4], [100], reference=math.log(2))
    assert (found.start, found.end, found.change.bounds) == (math.log(2), 0.4, None)


def test_the_mean_of_quarters_by_hand() -> None:
    """Eight rows, quarters of three: (0+1+2)/3 = 1, (5+6+7)/3 = 6; successive differences 1: sd sqrt(1/2)."""
    found = ends_of(np.arange(8.0))
    assert (found.start, found.end, found.change.value, found.k) == (1.0, 6.0, 5.0, 3)
    assert found.sd == pytest.approx(math.sqrt(0.5))
    assert ends_of(np.arange(5.0)).change.bounds is None


def test_few_rows_give_or_take_half_of_their_range() -> None:
    """0, -20, -80, -140: the later half lies at -110, half of the range is 70; the change has no bounds."""
    found = ends_of([0.0, -20.0, -80.0, -140.0])
    assert (found.level.value, found.level.bounds) == (-110.0, [-180.0, -40.0])
    assert (found.change.value, found.change.bounds) == (-100.0, None)
    assert ends_of([0.5]).level.bounds is None


def test_intervals_cover_their_truth() -> None:
    """400 flat series of 40 rows: the 95 % interval of the change leaves 0 out in about 5 %, here at most 9 %."""
    rng = np.random.default_rng(2)
    assert 5 <= sum(ends_of(rng.normal(0, 1, 40)).change.sign != 0 for _ in range(400)) <= 36
