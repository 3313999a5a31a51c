"""DVG008: no gradient reaches the weights."""

from __future__ import annotations

import numpy as np


def test_no_gradient_in_any_row(means, finding, noise):
    found = finding(means({"loss": 0.61 + noise(20, 0.005), "grad_norm": [0.0] * 20}), "DVG008")
    assert found["outcome"] == "speaks" and found["severity"] == "error"
    assert found["evidence"]["rows_without_gradient"] == 20


def test_gradients_flow(means, finding, noise):
    assert finding(means({"loss": 0.61 + noise(20, 0.005), "grad_norm": [0.3] * 20}), "DVG008")["outcome"] == "silent"


def test_a_zero_that_is_only_logged(means, finding, noise):
    """Some launchers log grad_norm 0 although the run learns: the loss says so."""
    run = means({"loss": np.linspace(0.69, 0.3, 20) + noise(20, 0.01), "grad_norm": [0.0] * 20})
    found = finding(run, "DVG008")
    assert found["outcome"] == "silent" and "wrong" in found["reason"]


def test_gradients_that_stop_half_way(means, finding, noise):
    grads = [0.4] * 10 + [0.0] * 10
    assert finding(means({"loss": 0.6 + noise(20, 0.01), "grad_norm": grads}), "DVG008")["outcome"] == "speaks"


def test_sums_that_never_change(pairs, finding):
    run = pairs({0: ([-10.0] * 5, -12.0), 5: ([-10.0] * 5, -12.0)})
    assert finding(run, "DVG008")["outcome"] == "speaks"
    assert "not one log-prob" in finding(run, "DVG008")["reason"]


def test_unknown(means, finding):
    assert finding(means({"loss": [0.6] * 9}), "DVG008")["outcome"] == "not_applicable"
