"""Statistics against numbers by hand, against brute force and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, rankdata, spearmanr

from dpo_diag import stats
from dpo_diag.stats import Interval


def test_a_mean_has_students_interval() -> None:
    """1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653: half width 4.302653 / sqrt 3 = 2.484138."""
    i = stats.mean_interval([1, 2, 3, math.nan])
    assert (i.value, i.low, i.high, i.n) == (2.0, pytest.approx(-0.484138), pytest.approx(4.484138), 3)
    assert i.method == "t" and i.bounds == [i.low, i.high]
    few = stats.mean_interval([1.5, 2.5])
    assert few.value == 2.0 and few.n == 2 and few.bounds is None and not few.above and not few.below
    assert stats.mean_interval([]).n == 0 and math.isnan(stats.mean_interval([math.inf]).value)


def test_a_proportion_by_hand() -> None:
    """8 of 10, z 1.96: centre (0.8 + 0.19207)/(1.38415) = 0.71674, half 0.22659: 0.4902 to 0.9433."""
    i = stats.proportion(8, 10)
    assert (i.low, i.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_a_mean_of_zeros_and_ones_has_wilsons_interval() -> None:
    """10 of 10: (1 + 1.92) / (1 + 3.84 / 10) -+ ... gives 0.7225 to 1; 0 of 0 is unknown."""
    i = stats.mean_interval([1.0] * 10)
    assert (i.value, i.n, i.method) == (1.0, 10, "Wilson")
    assert (i.low, i.high) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))
    assert math.isnan(stats.proportion(0, 0).value)
    for n in range(1, 40):  # the bound at 0 is 0 and at 1 is 1, not what two roundings leave of it
        assert stats.proportion(0, n).low == 0.0 and stats.proportion(n, n).high == 1.0
    assert stats.proportion(0, 10).low == 0.0 and stats.proportion(0, 10).high == pytest.approx(1 - 0.7225, abs=1e-4)


def test_two_samples_of_answers_by_the_paper() -> None:
    """Newcombe 1998, table II, example (a): 56/70 - 48/80 = .2, method 10 gives .0524 to .3339."""
    i = stats.proportion_change(48 / 80, 80, 56 / 70, 70)
    assert (i.value, i.n) == (pytest.approx(0.2), 70)
    assert [i.low, i.high] == pytest.approx([0.0524, 0.3339], abs=1e-4)


def test_two_samples_of_numbers_by_hand() -> None:
    """1 2 3 and 4 6 8: variances 1/3 and 4/3 of the means, degrees (5/3)^2 / ((1/9 + 16/9) / 2) = 2.9412."""
    i = stats.mean_difference([1, 2, 3], [4, 6, 8])
    half = 3.2188 * math.sqrt(5 / 3)  # t(0.975, 2.9412)
    assert i.value == 4.0 and [i.low, i.high] == pytest.approx([4 - half, 4 + half], abs=2e-3)
    assert stats.mean_difference([1, 2], [3, 4]).bounds is None and math.isnan(stats.mean_difference([], [1]).value)


def test_false_discovery_by_hand() -> None:
    """p .01 .02 .03 .5: .04, .04, .04, .5; NaN takes no part."""
    q = stats.false_discovery([0.5, 0.01, math.nan, 0.03, 0.02])
    assert q[[0, 1, 3, 4]].tolist() == pytest.approx([0.5, 0.04, 0.04, 0.04]) and math.isnan(q[2])
    assert np.isnan(stats.false_discovery([math.nan])).all() and stats.false_discovery([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_q_values_keep_the_order_and_are_no_smaller(p: list[float]) -> None:
    q = stats.false_discovery(p)
    assert (q >= np.array(p) - 1e-12).all() and (q <= 1).all()
    assert (np.diff(q[np.argsort(p)]) >= -1e-12).all()


@given(st.lists(st.sampled_from([0.001, 0.02, 0.02, 0.3, 0.7, 1.0]), min_size=1, max_size=12))
def test_q_values_are_scipys(p: list[float]) -> None:
    assert stats.false_discovery(p).tolist() == false_discovery_control(p).tolist()


def test_spearman_by_hand() -> None:
    """Ranks 1 2 3 4 against 1 3 2 4: rho = 1 - 6 * 2 / (4 * 15) = 0.8, t(2) = 0.8 sqrt(2 / 0.36) = 1.886, p = 0.2."""
    rho, p = stats.rank_correlation([1, 2, 3, 4], [10, 30, 20, 40])
    assert (rho, p) == pytest.approx((0.8, 0.2)) and stats.rank_correlation([1, 2, 3], [2, 4, 6]) == (1.0, 0.0)
    for x, y in (([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, math.nan, 3], [1, 2, 3])):
        assert np.isnan(stats.rank_correlation(x, y)).all()


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(-5, 5)), min_size=3, max_size=40))
def test_ranks_and_their_correlation_are_scipys(rows: list[tuple[int, float]]) -> None:
    x, y = (np.array(side, dtype=float) for side in zip(*rows, strict=True))
    assert stats.ranks(x).tolist() == rankdata(x).tolist()
    if np.ptp(x) and np.ptp(y):
        assert stats.rank_correlation(x, y) == pytest.approx(tuple(spearmanr(x, y)), abs=0, rel=1e-12)


def test_the_bootstrap_of_a_mean_agrees_with_t_and_repeats_itself() -> None:
    x = np.random.default_rng(0).normal(1, 1, 200)
    first, second = (stats.bootstrap(lambda c: c @ x / c.sum(axis=1), 200) for _ in range(2))
    t = stats.mean_interval(x)
    assert first == second and first.value == pytest.approx(x.mean())
    assert [first.low, first.high] == pytest.approx([t.low, t.high], abs=0.02)
    assert stats.bootstrap(lambda c: c @ x[:7] / 7, 7).bounds is None
    assert math.isnan(stats.bootstrap(lambda c: c.sum(axis=1), 0).value)


def test_clusters_are_drawn_whole() -> None:
    """20 sources of 10 equal answers each hold 20 facts, not 200: the interval is sqrt 10 times as wide."""
    x = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 10)
    mean = lambda c: c @ x / c.sum(axis=1)  # noqa: E731
    alone, whole = stats.bootstrap(mean, 200), stats.bootstrap(mean, 200, clusters=np.repeat(np.arange(20), 10))
    assert (whole.high - whole.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.15)
    assert whole.method == "bootstrap, clustered"
    assert stats.bootstrap(mean, 200, clusters=np.repeat(np.arange(5), 40)).bounds is None


def test_a_statistic_that_is_mostly_undefined_has_no_interval() -> None:
    assert stats.bootstrap(lambda c: np.where(c[:, 0] == 1, 1.0, np.nan), 20).bounds is None


def test_the_sign_of_an_estimate() -> None:
    assert Interval(1.0, 0.5, 1.5, 9).sign == 1 and Interval(-1.0, -1.5, -0.5, 9).sign == -1
    assert Interval(1.0, -0.5, 2.5, 9).sign == 0 and Interval(0.0, math.nan, math.nan, 1).sign == 0
    assert Interval(2.0, math.nan, math.nan, 1).sign == 1 and Interval(math.nan, math.nan, math.nan, 0).sign == 0


def test_scaling_by_a_negative_factor_turns_the_interval_round() -> None:
    i = Interval(1.0, 0.5, 1.5, 9).scaled(-2)
    assert (i.value, i.low, i.high) == (-2.0, -3.0, -1.0)
    assert str(i) == "-2 [-3, -1]"


def test_noise_of_a_trend_is_not_inflated_by_it() -> None:
    x = np.linspace(0, 100, 200) + np.random.default_rng(0).normal(0, 1, 200)
    assert stats.noise_sd(x) == pytest.approx(1.0, abs=0.2) and np.std(x) > 25
    assert stats.noise_sd([3.0] * 9) == 0.0 and math.isnan(stats.noise_sd([1.0, 2.0]))


def test_noise_survives_a_spike() -> None:
    x = np.random.default_rng(0).normal(0, 1, 100)
    x[50] = 1000.0
    assert stats.noise_sd(x) < 2.0


def test_how_many_are_needed_to_tell() -> None:
    """A standard error of .04 over 150 questions and a fall of .07: 150 ((1.960 + .8416) .04 / .07)^2 = 384.4."""
    change = stats.normal_interval(-0.07, 0.04, 150, "m")
    assert change.needed(-0.07) == change.needed(0.07) == 385
    assert change.needed(0.0) is None and change.with_least(151).needed(0.07) is None
    assert change.with_least(150) == change and change.with_least(151).bounds is None


def test_two_independent_shares_by_hand() -> None:
    """70 and 55 of 100: pooled .625, standard error sqrt(.625 .375 .02) = .06847, z = 2.1909, p = .02846."""
    assert stats.independent_test(0.7, 100, 0.55, 100) == pytest.approx(0.02846, abs=5e-6)
    assert stats.independent_test(1.0, 9, 1.0, 9) == 1.0
    assert stats.corrected_for(0.02, 3) == 0.06 and stats.corrected_for(0.6, 3) == 1.0
