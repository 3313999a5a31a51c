"""Intervals and trends against numbers by hand, and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_diag.diagnosis.checks import stats


def test_mean_interval_by_hand() -> None:
    """1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.302653: half width 4.302653 / sqrt 3 = 2.484138."""
    i = stats.mean_interval([1, 2, 3], 0.95)
    assert (i.value, i.low, i.high, i.n) == (2.0, pytest.approx(-0.484138), pytest.approx(4.484138), 3)
    assert math.isnan(stats.mean_interval([1.0, 2.0], 0.95).low) and math.isnan(stats.mean_interval([], 0.95).value)


def test_noise_of_a_trend_is_not_inflated_by_it() -> None:
    x = np.linspace(0, 100, 200) + np.random.default_rng(0).normal(0, 1, 200)
    assert stats.noise_sd(x) == pytest.approx(1.0, abs=0.2) and np.std(x) > 25
    assert stats.noise_sd([3.0] * 9) == 0.0 and math.isnan(stats.noise_sd([1.0, 2.0]))


def test_noise_survives_a_spike() -> None:
    x = np.random.default_rng(0).normal(0, 1, 100)
    x[50] = 1000.0
    assert stats.noise_sd(x) < 2.0


def test_ends_by_hand() -> None:
    """Eight rows, quarters of three: (0+1+2)/3 = 1, (5+6+7)/3 = 6; successive differences 1: sd sqrt(1/2)."""
    e = stats.ends(np.arange(8.0), 0.95)
    assert e is not None and (e.first, e.last, e.delta.value, e.k) == (1.0, 6.0, 5.0, 3)
    assert e.sd == pytest.approx(math.sqrt(0.5))
    assert stats.ends(np.arange(5.0), 0.95) is None


def test_ends_cover_their_truth() -> None:
    """400 flat series of 40 rows: the 95 % interval of the change leaves 0 out in about 5 %, here at most 9 %."""
    rng = np.random.default_rng(2)
    out = sum(not (e.low <= 0 <= e.high) for e in (stats.ends(rng.normal(0, 1, 40), 0.95).delta for _ in range(400)))
    assert 5 <= out <= 36


def test_paired_change_of_questions() -> None:
    """100 questions, 10 lost, 2 won: -0.08; Agresti-Min centre -8/102, half 1.96 sqrt((13/102 - (8/102)^2)/102)."""
    before, after = np.r_[np.ones(60), np.zeros(40)], np.r_[np.ones(50), np.zeros(10), np.ones(2), np.zeros(38)]
    i = stats.paired_proportion_change(before, after, 0.95)
    half = 1.959964 * math.sqrt((13 / 102 - (8 / 102) ** 2) / 102)
    assert i.value == pytest.approx(-0.08)
    assert (i.low, i.high) == (pytest.approx(-8 / 102 - half), pytest.approx(-8 / 102 + half))


def test_proportion_change_is_newcombes() -> None:
    """Newcombe 1998, method 10, 56/70 against 48/80: difference 0.2, 0.0524 to 0.3339."""
    i = stats.proportion_change(48 / 80, 80, 56 / 70, 70, 0.95)
    assert i.value == pytest.approx(0.2)
    assert [i.low, i.high] == pytest.approx([0.0524, 0.3339], abs=1e-4)


def test_top_share_and_ratio() -> None:
    assert stats.top_share([5, 3, 2, -9], 1) == 0.5
    assert math.isnan(stats.top_share([-1.0], 1)) and math.isnan(stats.ratio(1.0, 0.0)) and stats.ratio(1, 4) == 0.25


def test_bootstrap_is_reproducible() -> None:
    x = np.random.default_rng(0).normal(1, 1, 50)
    a, b = (stats.bootstrap(lambda i: float(x[i].mean()), 50, 0.95) for _ in range(2))
    assert a == b and a.low < x.mean() < a.high
