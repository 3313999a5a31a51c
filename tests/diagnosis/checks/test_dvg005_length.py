"""DVG005: lengths, not preferences, made the margin or moved the perplexity."""

from __future__ import annotations

import numpy as np
import pytest


def test_equal_fall_per_token_and_longer_rejected(pairs, finding, noise):
    """Both sides fall by 0.1 a token; chosen 40, rejected 80 tokens: margin +4 nats, per token 0."""
    n_c, n_r = 40, 80
    ref = -40.0 + noise(50), -80.0 + noise(50, seed=1)
    jitter = noise(50, 0.2, 2)
    run = pairs({0: ref, 5: (ref[0] - 4 + jitter, ref[1] - 8 + noise(50, 0.2, 3))}, n_c=n_c, n_r=n_r)
    found = finding(run, "DVG005")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["margin_gain"]["value"] == pytest.approx(4.0, abs=0.2)
    assert found["evidence"]["margin_gain_per_token"]["value"] == pytest.approx(0.0, abs=0.005)
    assert found["evidence"]["length_gap_rejected_minus_chosen"] == 40


def test_a_preference_that_holds_per_token_is_silent(pairs, finding, noise):
    ref = -40.0 + noise(50), -80.0 + noise(50, seed=1)
    run = pairs({0: ref, 5: (ref[0] + 1, ref[1] - 12 + noise(50, 0.2, 3))}, n_c=40, n_r=80)
    assert finding(run, "DVG005")["outcome"] == "silent"


def test_length_weight_carries_the_token_perplexity(pairs, finding):
    """Half have 10 tokens (CE 1 -> 1.2), half 90 (CE 1 -> 0.8): level +0, weight cov = -0.2 * 40 / 50 = -0.16."""
    n = np.tile([10, 90], 20)
    after = -n * np.where(n == 10, 1.2, 0.8)
    found = finding(pairs({0: (-1.0 * n, -1.0 * n), 5: (after, after)}, n_c=n, n_r=n), "DVG005")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["level"] == pytest.approx(0.0, abs=1e-12)
    assert found["evidence"]["length_weight"] == pytest.approx(-0.16)


def test_a_longer_chosen_that_rises_alike_per_token(pairs, finding):
    """Every token gains 0.1 nats on both sides, chosen is 1 to 80 tokens longer: the margin is 0.1 times the gap, so
    the correlation with rejected less chosen is -1, and per token there is none."""
    n_r = np.full(80, 40)
    n_c = n_r + np.arange(1, 81)
    run = pairs({0: (-1.0 * n_c, -1.0 * n_r), 5: (-0.9 * n_c, -0.9 * n_r)}, n_c=n_c, n_r=n_r)
    found = finding(run, "DVG005")
    assert (found["outcome"], found["severity"]) == ("speaks", "warning")
    assert found["evidence"]["correlation_of_gain_with_length_gap"] == pytest.approx(-1.0)
    assert found["evidence"]["margin_gain"]["value"] == pytest.approx(4.05)
    assert "chosen is 40.5 tokens longer, and both sides rose alike" in found["reason"]


@pytest.mark.parametrize("length", [5, 40, 400])
def test_two_collapsing_pairs_say_nothing_of_length(pairs, finding, noise, length):
    """150 pairs of 40 tokens scatter by 0.2 nats; two of another length lose 2 nats a token on both sides."""
    n = np.full(150, 40)
    n[[10, 90]] = length
    fall = np.zeros(150)
    fall[[10, 90]] = 2 * length
    run = pairs(
        {0: (-1.0 * n, -1.0 * n), 5: (-1.0 * n - fall + noise(150, 0.2), -1.0 * n - fall - 2 + noise(150, 0.2, 1))},
        n_c=n, n_r=n,
    )  # fmt: skip
    assert finding(run, "DVG005")["outcome"] == "silent"
