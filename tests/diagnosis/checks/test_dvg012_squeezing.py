"""DVG012: both sides fall, the model's own greedy tokens gain."""

from __future__ import annotations

import numpy as np
import pytest


def columns(entropy: float, greedy: float, n: int = 30):
    rng = np.random.default_rng(3)
    return {
        "entropy_sum": {0: (13.0, 13.0), 5: (13.0 + 10 * entropy + rng.normal(0, 0.05, n), 13.0)},
        "greedy_logp_sum": {0: (-6.0, -6.0), 5: (-6.0 + 10 * greedy + rng.normal(0, 0.05, n), -6.0)},
    }


def test_mass_moves_to_the_greedy_tokens(pairs, finding, noise):
    """Chosen only: entropy -0.2 and greedy +0.1 a token over 10 tokens; averaged over both sides half of that."""
    run = pairs({0: ([-10.0] * 30, -10.0), 5: (-12 + noise(30, 0.1), -16 + noise(30, 0.1, 1))},
                columns=columns(-0.2, 0.1))  # fmt: skip
    found = finding(run, "DVG012")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["entropy_change_per_token"]["value"] == pytest.approx(-0.1, abs=0.01)
    assert found["evidence"]["greedy_logp_change_per_token"]["value"] == pytest.approx(0.05, abs=0.01)


def test_entropy_rises_so_it_is_something_else(pairs, finding, noise):
    run = pairs({0: ([-10.0] * 30, -10.0), 5: (-12 + noise(30, 0.1), -16 + noise(30, 0.1, 1))},
                columns=columns(0.2, -0.1))  # fmt: skip
    assert finding(run, "DVG012")["outcome"] == "silent"


def test_chosen_rose(pairs, finding, noise):
    run = pairs({0: ([-10.0] * 30, -10.0), 5: (-9 + noise(30, 0.1), -16 + noise(30, 0.1, 1))},
                columns=columns(-0.2, 0.1))  # fmt: skip
    assert finding(run, "DVG012")["outcome"] == "silent"


def test_training_means_with_entropy(means, finding, noise):
    t = np.linspace(0, 1, 40)
    series = {"rewards/chosen": -t + noise(40, 0.05), "rewards/rejected": -2 * t + noise(40, 0.05, 1),
              "loss": 0.69 - 0.3 * t}  # fmt: skip
    run = means({**series, "entropy": 0.4 - 0.1 * t + noise(40, 0.01, 2)})
    assert finding(run, "DVG012")["outcome"] == "speaks"


def test_training_means_whose_entropy_rises(means, finding, noise):
    """A real case: both rewards fall, entropy .32 -> .37."""
    t = np.linspace(0, 1, 40)
    run = means({"rewards/chosen": -t + noise(40, 0.05), "rewards/rejected": -2 * t, "loss": 0.69 - 0.3 * t,
                 "entropy": 0.32 + 0.05 * t + noise(40, 0.01, 2)})  # fmt: skip
    assert finding(run, "DVG012")["outcome"] == "silent"


def test_unknown(pairs, finding):
    assert finding(pairs({0: ([-10.0] * 5, -10.0), 5: (-12.0, -13.0)}), "DVG012")["outcome"] == "not_applicable"
