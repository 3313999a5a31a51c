"""DVG009: nothing improved beyond noise."""

from __future__ import annotations

import math

import numpy as np

LN2 = math.log(2)


def test_flat_under_heavy_noise_over_many_rows(means, finding, noise):
    """Batches of four: sd 0.22 around 0.70 over 200 rows (a real case)."""
    run = means({"loss": 0.7 + noise(200, 0.22, 1), "accuracy": 0.5 + noise(200, 0.25, 2)}, every=1)
    found = finding(run, "DVG009")
    assert found["outcome"] == "speaks" and found["evidence"]["gain_loss"]["n"] == 200


def test_learning_is_silent(means, finding, noise):
    run = means({"loss": np.linspace(LN2, 0.5, 60) + noise(60, 0.05)})
    assert finding(run, "DVG009")["outcome"] == "silent"


def test_few_noisy_rows_cannot_tell(means, finding):
    run = means({"loss": [0.9, 0.4, 1.0, 0.5, 0.3, 0.9, 0.7, 0.8]})
    found = finding(run, "DVG009")
    assert found["outcome"] == "not_applicable" and found["reason"].startswith("cannot tell")


def test_learned_before_the_first_row(means, finding, noise):
    """Loss 0.4 from the first row on: below ln 2, so it did learn."""
    run = means({"loss": 0.4 + noise(40, 0.01)}, loss={"types": ["sigmoid"]}, every=100)
    assert finding(run, "DVG009")["outcome"] == "silent"


def test_at_the_floor_is_not_flat(means, finding):
    run = means({"loss": [0.001] * 40}, loss={"types": ["sigmoid"]})
    assert finding(run, "DVG009")["outcome"] == "silent"


def test_pairs_whose_loss_did_not_move(pairs, finding, noise):
    ref = -20 + noise(80), -20 + noise(80, seed=1)
    run = pairs({0: ref, 5: (ref[0] + noise(80, 0.05, 2), ref[1] + noise(80, 0.05, 3))}, ref=ref)
    assert finding(run, "DVG009")["outcome"] == "speaks"


def test_pairs_whose_loss_fell(pairs, finding, noise):
    ref = -20 + noise(80), -20 + noise(80, seed=1)
    run = pairs({0: ref, 5: (ref[0] + 2 + noise(80, 0.5, 2), ref[1] - 3)}, ref=ref)
    assert finding(run, "DVG009")["outcome"] == "silent"
