"""DVG022: the held-out loss turns while the training loss falls."""

from __future__ import annotations

import numpy as np
import pytest


def test_evaluations_turn(means, finding):
    run = means({"loss": np.linspace(0.69, 0.1, 40)}, {"loss": [0.69, 0.6, 0.55, 0.58, 0.63, 0.7]}, every=20)
    found = finding(run, "DVG022")
    assert found["outcome"] == "speaks" and found["evidence"]["best_step"] == 40.0
    assert found["evidence"]["last_loss"] == 0.7


def test_evaluations_fall_with_a_dent(means, finding):
    run = means({"loss": np.linspace(0.69, 0.3, 40)}, {"loss": [0.63, 0.68, 0.59, 0.57, 0.565, 0.49, 0.46]}, every=20)
    assert finding(run, "DVG022")["outcome"] == "silent"


def test_both_rise_is_divergence(means, finding):
    run = means({"loss": np.linspace(0.5, 1.5, 40)}, {"loss": [0.69, 0.6, 0.7, 0.9, 1.2, 1.4]}, every=20)
    assert finding(run, "DVG022")["outcome"] == "silent"


def test_pairs_turn_beyond_noise(pairs, finding, noise):
    """Margins 0, +1, -1 (times beta 0.1: b = -10, then +10): loss .693, .313, 1.313; paired over 60 pairs."""
    ref = -40 + noise(60), -40 + noise(60, seed=1)
    run = pairs({0: ref, 5: (ref[0], ref[1] - 10), 9: (ref[0], ref[1] + 10 + noise(60, 1.0, 3))}, ref=ref)
    found = finding(run, "DVG022")
    assert found["outcome"] == "speaks" and found["evidence"]["best_step"] == 5
    assert found["evidence"]["rise"]["value"] == pytest.approx(1.0, abs=0.03)


def test_pairs_inside_the_noise(pairs, finding, noise):
    ref = -40 + noise(12), -40 + noise(12, seed=1)
    jump = noise(12, 20.0, 3)
    run = pairs({0: ref, 5: (ref[0], ref[1] - 2), 9: (ref[0], ref[1] - 2 + jump)}, ref=ref)
    assert finding(run, "DVG022")["outcome"] == "not_applicable"


def test_turned_from_the_very_start(means, finding):
    """Nothing carries over: the held-out loss rises from ln 2 on while the training loss falls (a real training)."""
    run = means({"loss": np.linspace(0.69, 0.01, 40)}, {"loss": [0.693, 0.81, 0.97, 1.09, 1.16, 1.2]}, every=20,
                loss={"types": ["sigmoid"]})  # fmt: skip
    found = finding(run, "DVG022")
    assert found["outcome"] == "speaks" and found["evidence"]["best_step"] == 0.0
