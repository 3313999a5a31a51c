"""DVG010: the loss ends at its floor."""

from __future__ import annotations

import math

import numpy as np
import pytest


def test_sigmoid_near_zero(means, finding):
    run = means({"loss": 0.69 * np.exp(-np.arange(40) / 4.0)}, loss={"types": ["sigmoid"]})
    found = finding(run, "DVG010")
    assert found["outcome"] == "speaks" and found["evidence"]["floor"] == 0.0


def test_above_the_floor(means, finding):
    run = means({"loss": np.linspace(0.69, 0.3, 40)}, loss={"types": ["sigmoid"]})
    assert finding(run, "DVG010")["outcome"] == "silent"


def test_label_smoothing_has_its_own_floor(means, finding):
    """eps 0.1: floor = -(0.9 ln 0.9 + 0.1 ln 0.1) = 0.32508; a loss of 0.326 is there, far from 0 as it looks."""
    floor = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert floor == pytest.approx(0.32508, abs=1e-5)
    loss = floor + 0.36 * np.exp(-np.arange(40) / 4.0)
    found = finding(means({"loss": loss}, loss={"types": ["cdpo"], "label_smoothing": 0.1}), "DVG010")
    assert found["outcome"] == "speaks" and found["evidence"]["floor"] == pytest.approx(floor)


def test_label_smoothing_that_nobody_mentions_is_read_off_the_numbers(means, finding):
    """loss = softplus(-m) + eps m with eps 0.1, every pair won: eps shows in each row, and with it the floor."""
    m = np.concatenate([np.linspace(0, 2.15, 12), np.full(20, 2.19) + 0.01 * np.sin(np.arange(20))])
    run = means({
        "loss": np.log1p(np.exp(-m)) + 0.1 * m, "rewards/margins": m, "rewards/accuracies": np.where(m > 0.5, 1.0, 0.8),
    })  # fmt: skip
    found = finding(run, "DVG010")
    assert found["outcome"] == "speaks" and "label smoothing 0.1" in found["evidence"]["floor_because"]


def test_pairs_alone(pairs, finding):
    """Margin 0.1 * 100 = 10: loss 4.5e-5."""
    run = pairs({0: ([-50.0] * 5, -50.0), 5: (-30.0, -130.0)}, ref=(-50.0, -50.0))
    assert finding(run, "DVG010")["outcome"] == "speaks"


def test_no_floor_known(means, finding):
    run = means({"loss": [0.1] * 10}, loss={"types": ["discopop"]})
    assert finding(run, "DVG010")["outcome"] == "not_applicable"


def test_since_when_the_rows_stay(means, finding):
    """Row 10 (step 50) dips to the floor and leaves it; from row 21 (step 105) on 20 rows stay, but for one that noise
    lifts: 20 of 40 rows are there."""
    loss = np.concatenate([np.full(20, 0.5), np.full(20, 0.004)])
    loss[9], loss[30] = 0.004, 0.05
    found = finding(means({"loss": loss}, loss={"types": ["sigmoid"]}), "DVG010")
    assert (found["evidence"]["since_step"], found["evidence"]["share_of_rows_there"]) == (105, 0.5)
    assert "rows are there, 19 of the 20 from step 105 on" in found["reason"]
