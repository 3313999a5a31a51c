"""DVG020: the loss ends above where it was."""

from __future__ import annotations

import math

import numpy as np

SIGMOID = {"types": ["sigmoid"]}


def test_it_rises(means, finding, noise):
    run = means({"loss": np.concatenate([np.full(20, 0.69), np.linspace(0.7, 3.0, 20)]) + noise(40, 0.05)})
    found = finding(run, "DVG020")
    assert found["outcome"] == "speaks" and found["severity"] == "error"


def test_it_leaves_at_once(means, finding, noise):
    """.693, then around 7 for good (a real training at rate 1): first and last quarter do not differ."""
    loss = np.abs(7 + noise(60, 4.0))
    loss[0] = 0.693
    assert finding(means({"loss": loss}, every=1, loss=SIGMOID), "DVG020")["outcome"] == "speaks"


def test_it_climbs_back_from_its_minimum(means, finding, noise):
    loss = np.concatenate([np.linspace(0.69, 0.3, 30), np.linspace(0.3, 0.65, 30)]) + noise(60, 0.02)
    found = finding(means({"loss": loss}, loss=SIGMOID), "DVG020")
    assert found["outcome"] == "speaks" and 125 <= found["evidence"]["minimum_step"] <= 175


def test_it_falls(means, finding, noise):
    assert finding(means({"loss": np.linspace(0.69, 0.4, 40) + noise(40, 0.08)}), "DVG020")["outcome"] == "silent"


def test_not_finite_at_the_end(means, finding):
    loss = [0.69, 0.68, 0.6, 0.6, 0.55, math.nan, math.nan, math.nan]
    assert finding(means({"loss": loss}), "DVG020")["outcome"] == "speaks"


def test_flat_noise(means, finding, noise):
    assert finding(means({"loss": 0.7 + noise(200, 0.22)}), "DVG020")["outcome"] == "silent"
