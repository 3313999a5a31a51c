"""DVG002: rejected fell far beyond what the loss needs."""

from __future__ import annotations

import numpy as np
import pytest


def test_rejected_falls_by_eighty_nats_of_a_hundred(pairs, finding, noise):
    """b = -80: reward -8 at beta 0.1, 80 % more negative than its reference -100, and 80 of 82 nats of the margin."""
    ref = -100.0 + noise(30), -100.0 + noise(30, seed=1)
    run = pairs({0: ref, 9: (ref[0] + 2, ref[1] - 80 + noise(30, 1.0, 2))}, n_c=60, n_r=60, ref=ref)
    found = finding(run, "DVG002")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["relative_rise_of_rejected_nll"] == pytest.approx(0.8, abs=0.01)
    assert found["evidence"]["rejected_reward"]["value"] == pytest.approx(-8.0, abs=0.1)
    assert found["evidence"]["share_of_margin"] == pytest.approx(80 / 82, abs=0.01)


def test_an_ordinary_fall_is_silent(pairs, finding, noise):
    ref = -100.0 + noise(30), -100.0 + noise(30, seed=1)
    assert finding(pairs({0: ref, 9: (ref[0] + 2, ref[1] - 10)}, ref=ref), "DVG002")["outcome"] == "silent"


def test_rewards_of_training_rows(means, finding, noise):
    t = np.linspace(0, 1, 30)
    run = means({"loss": 0.69 * (1 - t) + 0.01, "rewards/rejected": -9 * t + noise(30, 0.3),
                 "rewards/margins": 10 * t + noise(30, 0.3, 1)})  # fmt: skip
    found = finding(run, "DVG002")
    assert found["outcome"] == "speaks" and found["evidence"]["rejected_reward"]["value"] < -7
    mild = means({"rewards/rejected": -2 * t, "rewards/margins": 1.0 * t})
    assert finding(mild, "DVG002")["outcome"] == "silent"


def test_mean_logps_of_a_loss_without_reference(means, finding, noise):
    """rewards = 2 x mean log-prob (SimPO): no reference in them, so the log-prob's own fall counts: -1.0 -> -2.0."""
    t = np.linspace(0, 1, 24)
    c, r = -1.0 + 0.0 * t + noise(24, 0.01), -1.0 - t + noise(24, 0.01, 1)
    run = means({"loss": 1 - 0.5 * t, "rewards/chosen": 2 * c, "rewards/rejected": 2 * r, "logps/chosen": c,
                 "logps/rejected": r})  # fmt: skip
    assert finding(run, "DVG002")["outcome"] == "speaks"


def test_unknown_without_the_rejected_side(means, finding):
    assert finding(means({"loss": [0.6] * 9}), "DVG002")["outcome"] == "not_applicable"


@pytest.mark.parametrize("kind", ["held", "train"])
def test_four_rows_show_a_collapse(means, finding, kind):
    """Rewards of rejected 0, -20, -80, -140 and of chosen near 0: as evaluations -140, as training rows -110 +- 70."""
    columns = {"loss": [0.69, 0.05, 0.001, 0.0001], "rewards/chosen": [0.0, 0.5, -0.2, 0.3],
               "rewards/rejected": [0.0, -20.0, -80.0, -140.0], "rewards/margins": [0.0, 20, 80, 140]}  # fmt: skip
    found = finding(means(**{kind: columns}, every=1), "DVG002")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["rejected_reward"]["value"] == (-140.0 if kind == "held" else -110.0)


def test_a_wrong_reference_counts_from_the_own_start(means, finding):
    """5 at step 0, -4 at the end: 9 lost, of a margin that gained 5.5."""
    columns = {"loss": [0.69, 0.3, 0.1], "rewards/chosen": [5.0, 3.0, 1.5], "rewards/rejected": [5.0, 1.0, -4.0],
               "rewards/margins": [0.0, 2.0, 5.5]}  # fmt: skip
    found = finding(means(held=columns), "DVG002")
    assert found["evidence"]["rejected_reward"]["value"] == -9.0
    assert "by an implicit reward of 9 from its own start" in found["reason"]


def test_log_probs_of_small_batches_count_by_the_least_fall(means, finding, noise):
    """Between the means of the first and last quarter, -64.3 and -95.7, lies a fall of 49 %; batches that differ by 20
    nats leave falls below 30 % possible (half an interval is some 25 nats), batches that differ by 1 nat do not."""
    level = np.linspace(-60, -100, 24)

    def outcome(sd):
        logps = level + noise(24, sd)
        rewards = 0.02 * (level - level[0])
        return finding(
            means({"logps/rejected": logps, "rewards/rejected": rewards, "loss": np.full(24, 0.6)}), "DVG002"
        )

    assert outcome(20.0)["outcome"] != "speaks"
    assert outcome(1.0)["outcome"] == "speaks"
