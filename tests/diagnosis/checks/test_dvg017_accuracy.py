"""DVG017: an accuracy that ignores the reference."""

from __future__ import annotations

import numpy as np
import pytest


def logged(value: float):
    return [{"step": s, "split": "eval", "name": "rewards/accuracies", "value": value} for s in (0, 5)]


def made(pairs, value: float):
    """Chosen is likelier than rejected in 90 % of pairs; the margin over the reference is positive in 50 %."""
    n = 40
    ref_c, ref_r = np.full(n, -10.0), np.where(np.arange(n) < 36, -20.0, -5.0)
    b = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    return pairs({0: (ref_c, ref_r), 5: (ref_c, ref_r + b)}, ref=(ref_c, ref_r), history=logged(value))


def test_the_logged_one_ignores_the_reference(pairs, finding):
    found = finding(made(pairs, 0.9), "DVG017")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["reward_accuracy"] == pytest.approx(0.5)
    assert found["evidence"]["accuracy_without_reference"] == pytest.approx(0.9)


def test_the_logged_one_is_reward_accuracy(pairs, finding):
    assert finding(made(pairs, 0.5), "DVG017")["outcome"] == "silent"


def test_accuracy_where_all_rewards_are_zero(means, finding):
    """At the reference all rewards tie: an accuracy of .63 there compares log-probs."""
    rows = {"rewards/chosen": [0.0, 0.1, 0.2], "rewards/rejected": [0.0, -0.1, -0.2]}
    assert finding(means(held={**rows, "rewards/accuracies": [0.63, 0.7, 0.8]}), "DVG017")["outcome"] == "speaks"


def test_ties_count_as_lost(means, finding):
    rows = {"rewards/chosen": [0.0, 0.1, 0.2], "rewards/rejected": [0.0, -0.1, -0.2]}
    assert finding(means(held={**rows, "rewards/accuracies": [0.0, 0.7, 0.8]}), "DVG017")["outcome"] == "silent"


def test_unknown(means, finding):
    assert finding(means({"loss": [0.6] * 9}), "DVG017")["outcome"] == "not_applicable"
