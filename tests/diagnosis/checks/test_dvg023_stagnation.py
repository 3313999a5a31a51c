"""DVG023: an early improvement, then nothing, at full rate and far from the floor."""

from __future__ import annotations

import numpy as np

T = np.arange(120)
PLATEAU = 0.5 + 0.19 * np.exp(-T / 8.0)


def test_it_stands_still(means, finding, noise):
    run = means({"loss": PLATEAU + noise(120, 0.01), "learning_rate": [5e-6] * 120})
    assert finding(run, "DVG023")["outcome"] == "speaks"


def test_a_decayed_rate_explains_it(means, finding, noise):
    run = means({"loss": PLATEAU + noise(120, 0.01), "learning_rate": 5e-6 * np.exp(-T / 20.0)})
    found = finding(run, "DVG023")
    assert found["outcome"] == "silent" and "rate" in found["reason"]


def test_it_still_falls(means, finding, noise):
    run = means({"loss": np.linspace(0.69, 0.4, 120) + noise(120, 0.02)})
    assert finding(run, "DVG023")["outcome"] == "silent"


def test_it_converged(means, finding, noise):
    run = means({"loss": 0.15 + 0.54 * np.exp(-T / 8.0) + noise(120, 0.01)})
    assert finding(run, "DVG023")["outcome"] == "silent"


def test_noise_hides_it(means, finding, noise):
    run = means({"loss": PLATEAU + noise(120, 0.3)})
    assert finding(run, "DVG023")["outcome"] != "speaks"


def test_it_says_that_the_rate_is_not_recorded(means, finding, noise):
    """The same plateau without a learning rate: nothing is said of a rate that nobody recorded."""
    t = np.arange(120)
    found = finding(means({"loss": 0.5 + 0.19 * np.exp(-t / 8.0) + noise(120, 0.01)}), "DVG023")
    assert found["outcome"] == "speaks" and found["reason"].endswith("; the learning rate is not recorded")
    assert found["evidence"]["low_rate"] is None
