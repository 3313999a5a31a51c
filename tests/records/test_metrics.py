"""Identities of the quantities (DESIGN section 2), by hand and by property."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.records import metrics


def sums(ce: list[float], n: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """sum_logp and counts of responses with these cross-entropies."""
    counts = np.array(n, dtype=float)
    return -np.array(ce) * counts, counts


RESPONSES = st.lists(
    st.tuples(st.floats(0.0, 50.0), st.integers(1, 4000)), min_size=1, max_size=40
)  # fmt: skip


def test_worked_example() -> None:
    """CE [1, 1, 9, 1]: mean 3, mean of exp = (3e + e^9)/4 = (8.1548 + 8103.0839)/4 = 2027.8097, e^3 = 20.0855;
    [4, 4, 4, 4]: e^4 = 54.5982 for both (not e^4 / 4 = 13.65)."""
    s, n = sums([1, 1, 9, 1], [5, 5, 5, 5])
    assert metrics.mean_ce(s, n) == 3.0
    assert metrics.ppl_seq_mean(s, n) == pytest.approx(2027.81, abs=0.005)
    assert metrics.ppl_seq_geomean(s, n) == pytest.approx(20.09, abs=0.005)
    s, n = sums([4, 4, 4, 4], [5, 5, 5, 5])
    assert metrics.mean_ce(s, n) == 4.0
    assert metrics.ppl_seq_mean(s, n) == pytest.approx(54.60, abs=0.005)
    assert metrics.ppl_seq_geomean(s, n) == pytest.approx(54.60, abs=0.005)


def test_length_weight_by_hand() -> None:
    """CE [1, 2] over n [30, 10]: ppl_token's log is (30 + 20)/40 = 1.25; level 1.5; cov(n, ce) = mean((10)(-.5),
    (-10)(.5)) = -5 over mean n 20 = -0.25."""
    s, n = sums([1, 2], [30, 10])
    assert metrics.log_ppl_token(s, n) == 1.25
    assert metrics.mean_ce(s, n) == 1.5
    assert metrics.length_weight(s, n) == -0.25


@settings(max_examples=40, deadline=None)
@given(RESPONSES)
def test_seq_mean_is_level_plus_dispersion(responses: list[tuple[float, int]]) -> None:
    s, n = sums([c for c, _ in responses], [k for _, k in responses])
    spread = metrics.dispersion(s, n)
    assert spread >= -1e-12
    assert metrics.log_ppl_seq_mean(s, n) == pytest.approx(metrics.mean_ce(s, n) + spread, rel=1e-12, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(RESPONSES)
def test_token_is_level_plus_length_weight(responses: list[tuple[float, int]]) -> None:
    s, n = sums([c for c, _ in responses], [k for _, k in responses])
    expected = metrics.mean_ce(s, n) + metrics.length_weight(s, n)
    assert metrics.log_ppl_token(s, n) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@given(st.floats(0.0, 700.0), st.integers(1, 100), st.integers(1, 30))
def test_equal_responses_have_one_perplexity(ce: float, n: int, count: int) -> None:
    s, k = sums([ce] * count, [n] * count)
    for log_ppl in metrics.PERPLEXITIES.values():
        assert log_ppl(s, k) == pytest.approx(ce, rel=1e-12, abs=1e-12)


def test_empty_sets_have_no_perplexity() -> None:
    for function in (*metrics.PERPLEXITIES.values(), metrics.dispersion, metrics.length_weight, metrics.bits_per_byte):
        assert math.isnan(function([], []))
    assert all(math.isnan(q) for q in metrics.quadrants([], []))


def test_a_response_without_tokens_is_nan_not_zero() -> None:
    assert math.isnan(metrics.ce([0.0], [0])[0])
    assert math.isnan(metrics.mean_ce([0.0, -1.0], [0, 1]))


def test_infinite_log_prob_gives_infinite_perplexity() -> None:
    s, n = np.array([-math.inf, -2.0]), np.array([2.0, 2.0])
    assert metrics.ppl_seq_mean(s, n) == math.inf
    assert metrics.ppl_token(s, n) == math.inf
    assert metrics.ppl_seq_geomean(s, n) == math.inf


def test_overflow_is_infinity_and_its_log_stays_finite() -> None:
    s, n = sums([1000.0], [1])
    assert metrics.ppl_seq_mean(s, n) == math.inf
    assert metrics.log_ppl_seq_mean(s, n) == 1000.0


def test_bits_per_byte_of_the_published_check() -> None:
    """Byte-level perplexity 1.6547 is log2(1.6547) = 0.7266 bits per byte."""
    n = np.array([1000.0, 500.0])
    assert metrics.bits_per_byte(-math.log(1.6547) * n, n) == pytest.approx(0.7266, abs=5e-5)


def test_quadrants_by_hand() -> None:
    """(+,+) both rose, (0,-) chosen did not fall: chosen_rose, (-,+) rejected_rose, (-,-) both fell."""
    assert metrics.quadrants([1, 0, -1, -1], [1, -1, 1, -2]) == (0.25, 0.25, 0.25, 0.25)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="same shape"):
        metrics.ce([1.0, 2.0], [1.0])
