"""Statistics against hand values and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.outputs.stats import (
    benjamini_hochberg,
    binomial_tail,
    entropy,
    mcnemar,
    mean_interval,
    paired_change,
    sign_flip,
)
from dpo_diag.records.metrics import newcombe_interval


def test_exact_tests_by_hand() -> None:
    """8 gained, 1 lost: P(X >= 8 | 9) = (9 + 1) / 512; two-sided twice that."""
    assert binomial_tail(8, 9) == pytest.approx(10 / 512)
    assert mcnemar(8, 1) == pytest.approx(20 / 512)
    assert mcnemar(1, 8) == mcnemar(8, 1)
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0
    assert binomial_tail(2_600, 5_000) == pytest.approx(0.00244, rel=0.02)


def test_benjamini_hochberg_by_hand() -> None:
    """p .01 .02 .03 .5: .04, .04, .04, .5; NaN takes no part."""
    assert benjamini_hochberg([0.5, 0.01, math.nan, 0.03, 0.02])[[0, 1, 3, 4]].tolist() == pytest.approx(
        [0.5, 0.04, 0.04, 0.04]
    )
    assert np.isnan(benjamini_hochberg([math.nan])).all()
    assert benjamini_hochberg([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_q_values_keep_the_order_and_are_no_smaller(p: list[float]) -> None:
    q = benjamini_hochberg(p)
    assert (q >= np.array(p) - 1e-12).all() and (q <= 1).all()
    order = np.argsort(p)
    assert (np.diff(q[order]) >= -1e-12).all()


def test_sign_flip_equals_enumeration() -> None:
    """All 2^6 sign patterns of 1, 2, 3, 4, 5, 1, counted: the share with a sum as far from 0 as 14."""
    d = np.array([1.0, 2, 3, 4, 5, -1])
    sums = [abs(np.dot(s, np.abs(d))) for s in itertools.product((1, -1), repeat=6)]
    exact = np.mean(np.array(sums) >= abs(d.sum()))
    assert sign_flip(d) == pytest.approx(exact, abs=0.01)
    assert sign_flip([0, 0]) == 1.0
    assert sign_flip([1.0] * 8) == pytest.approx(2 / 256)


def test_intervals() -> None:
    e = mean_interval([1.0] * 10)
    assert (e.value, e.n) == (1.0, 10)
    assert (e.low, e.high) == (pytest.approx(0.7225, abs=1e-3), pytest.approx(1.0))  # Wilson
    values = np.arange(100) / 7
    e = mean_interval(values)
    half = 1.96 * values.std() / 10
    assert e.low == pytest.approx(values.mean() - half, abs=0.15) and e.high == pytest.approx(
        values.mean() + half, abs=0.15
    )
    assert mean_interval([]).n == 0 and math.isnan(mean_interval([]).value)
    assert mean_interval([math.nan, 2.0]).n == 1


def test_paired_change_drops_unpaired_and_tells_direction() -> None:
    change = paired_change([0, 0, 1, math.nan, 0], [1, 1, 1, 1, math.nan])
    assert change.n == 3 and change.delta == pytest.approx(2 / 3) and change.p == 0.5
    assert paired_change([1, 2], [1, 2]).effect == 0 and paired_change([1, 1], [2, 2]).effect == math.inf
    assert paired_change([], []).n == 0


def test_newcombe_by_the_paper() -> None:
    """Newcombe 1998, table II, example (a): 56/70 - 48/80 = .2, method 10 gives .0524 to .3339."""
    low, high = newcombe_interval(48 / 80, 80, 56 / 70, 70)
    assert (low, high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_entropy() -> None:
    assert entropy([1, 1]) == pytest.approx(math.log(2))
    assert entropy([5, 0]) == 0.0 and math.isnan(entropy([]))
