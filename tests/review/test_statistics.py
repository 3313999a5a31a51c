"""Bradley-Terry and kappa against numbers derived by hand and an independent optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from dpo_diag.review.agreement import cohen_kappa
from dpo_diag.review.judge import combine, verdict_of
from dpo_diag.review.ranking import bradley_terry, groups


def test_two_checkpoints_without_a_prior_give_the_log_odds() -> None:
    """3 wins of 4: log-odds ln 3; the variance of a log-odds is 1/3 + 1/1, each checkpoint's share of it a quarter."""
    worse, better = bradley_terry([[0, 1], [3, 0]], prior=1e-9)
    assert better.value - worse.value == pytest.approx(math.log(3), abs=1e-6)
    assert better.value == pytest.approx(-worse.value, abs=1e-9)
    assert (better.high - better.value) / 1.959963984540054 == pytest.approx(0.5 * math.sqrt(4 / 3), rel=1e-5)
    assert (worse.n, better.n) == (4, 4)


def test_a_checkpoint_that_wins_always_stays_finite() -> None:
    ranked = bradley_terry([[0, 10], [0, 0]])
    assert ranked[0].value > 1
    assert math.isfinite(ranked[0].high)


def test_empty_and_wrong_inputs() -> None:
    assert bradley_terry(np.zeros((0, 0))) == []
    (alone,) = bradley_terry([[0.0]])
    assert alone.value == 0
    with pytest.raises(ValueError, match="square"):
        bradley_terry([[0, -1], [1, 0]])


@given(arrays(float, (4, 4), elements=st.integers(0, 12).map(lambda x: x / 2)))
@settings(max_examples=30, deadline=None)
def test_the_maximum_is_an_optimisers_maximum(scores: np.ndarray) -> None:
    np.fill_diagonal(scores, 0)

    def loss(theta: np.ndarray) -> float:
        gap = theta[:, None] - theta[None, :]
        prior = np.logaddexp(0, theta).sum() / 2 + np.logaddexp(0, -theta).sum() / 2
        return float((scores * np.logaddexp(0, -gap)).sum() + prior)

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    mine = np.array([x.value for x in bradley_terry(scores)])
    assert mine == pytest.approx(best - best.mean(), abs=1e-4)
    # Swapping who won turns every ability round.
    assert np.array([x.value for x in bradley_terry(scores.T)]) == pytest.approx(-mine, abs=1e-6)


def test_checkpoints_that_were_never_compared_are_in_groups_of_their_own() -> None:
    assert groups([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.5], [0, 0, 0.5, 0]]) == [0, 0, 1, 1]


def test_kappa_by_hand() -> None:
    """Both yes 20, both no 15, only the first yes 5, only the second yes 10, of 50: observed 35/50 = 0.7; the first
    says yes 25/50, the second 30/50, so by chance 0.5*0.6 + 0.5*0.4 = 0.5; kappa = 0.2/0.5 = 0.4."""
    first = ["y"] * 20 + ["n"] * 15 + ["y"] * 5 + ["n"] * 10
    second = ["y"] * 20 + ["n"] * 15 + ["n"] * 5 + ["y"] * 10
    k = cohen_kappa(first, second)
    assert (k.equal, k.kappa.n) == (0.7, 50)
    assert k.kappa.value == pytest.approx(0.4)
    # Asymptotic standard error sqrt(po (1-po) / (n (1-pe)^2)) = 0.1296: the bootstrap is near it.
    assert k.kappa.low == pytest.approx(0.4 - 1.96 * 0.1296, abs=0.04)
    assert k.kappa.high == pytest.approx(0.4 + 1.96 * 0.1296, abs=0.04)


def test_kappa_at_its_ends() -> None:
    assert cohen_kappa(["a", "b"] * 5, ["a", "b"] * 5).kappa.value == pytest.approx(1)
    assert cohen_kappa(["a", "b"] * 5, ["b", "a"] * 5).kappa.value == pytest.approx(-1)
    assert math.isnan(cohen_kappa(["a"] * 9, ["a"] * 9).kappa.value)
    assert cohen_kappa(["a"] * 9, ["a"] * 9).equal == 1
    assert math.isnan(cohen_kappa(["a", "b"], ["a", "b"]).kappa.low)
    assert cohen_kappa([], []).kappa.n == 0
    with pytest.raises(ValueError, match="same items"):
        cohen_kappa(["a"], [])


@pytest.mark.parametrize(
    ("straight", "swapped", "outcome"),
    [("first", "second", "a"), ("second", "first", "b"), ("first", "first", "tie"), ("second", "second", "tie"),
     ("tie", "tie", "tie"), ("both_bad", "both_bad", "both_bad"), ("first", "tie", "tie"), (None, "first", None)],
)  # fmt: skip
def test_a_preference_must_hold_in_both_orders(straight: str | None, swapped: str | None, outcome: str | None) -> None:
    assert combine(straight, swapped) == outcome


def test_only_one_verdict_can_be_read_from_a_reply() -> None:
    assert verdict_of('Sure. {"verdict": "second", "why": "shorter"}') == "second"
    assert verdict_of('{"verdict": "first"} or {"verdict": "second"}') is None
    assert verdict_of("first") is None
    assert verdict_of('{"verdict": "third"}') is None
