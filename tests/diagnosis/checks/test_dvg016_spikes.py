"""DVG016: spikes by median and MAD, one-sided; a fast fall is none."""

from __future__ import annotations

import numpy as np
import pytest


def test_one_spike(means, finding, noise):
    loss = 0.5 + noise(40, 0.03)
    loss[20] = 2.0
    found = finding(means({"loss": loss}), "DVG016")
    assert found["outcome"] == "speaks" and found["evidence"]["steps"] == [105.0]


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_a_loss_that_falls_fast_has_no_spike(means, finding, noise, rate):
    loss = 0.69 * np.exp(-np.arange(40) / rate) + 0.001 + np.abs(noise(40, 0.0005))
    assert finding(means({"loss": loss}), "DVG016")["outcome"] == "silent"


def test_steps_down_at_epoch_ends(means, finding, noise):
    loss = np.repeat([0.6, 0.35, 0.15, 0.05], 15) + noise(60, 0.02)
    assert finding(means({"loss": loss}), "DVG016")["outcome"] == "silent"


def test_skewed_noise_of_single_pairs(means, finding):
    """Batches of one pair: softplus of a normal margin, 400 rows."""
    loss = np.logaddexp(0, -np.random.default_rng(1).normal(0.5, 1.5, 400))
    assert finding(means({"loss": loss}), "DVG016")["outcome"] == "silent"


def test_too_few_rows(means, finding):
    assert finding(means({"loss": [0.6] * 9}), "DVG016")["outcome"] == "not_applicable"
