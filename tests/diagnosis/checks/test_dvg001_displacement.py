"""DVG001: chosen fell while the loss fell."""

from __future__ import annotations

import numpy as np
import pytest


def test_pairs_chosen_minus_two_rejected_minus_eight(pairs, finding, noise):
    """a = -2, b = -8 (nats) for every pair on average: margin 0.6, loss softplus(-0.6) = 0.4375 < ln 2; both fell."""
    ref = -20.0 + noise(40), -22.0 + noise(40, seed=1)
    run = pairs({0: ref, 10: (ref[0] - 2 + noise(40, 0.1, 2), ref[1] - 8 + noise(40, 0.1, 3))}, ref=ref)
    found = finding(run, "DVG001")
    assert found["outcome"] == "speaks" and found["severity"] == "warning"
    change = found["evidence"]["chosen_change"]
    assert change["value"] == pytest.approx(-2.0, abs=0.1) and change["high"] < -1.9
    assert found["evidence"]["margin_gain"] == pytest.approx(6.0, abs=0.1)
    assert found["evidence"]["loss"][1] == pytest.approx(np.log1p(np.exp(-0.6)), abs=0.01)
    assert found["evidence"]["quadrants"]["both_fell"] == 1.0
    assert "cannot say whether this is harm" in found["reason"]


def test_pairs_chosen_rose(pairs, finding, noise):
    ref = -20.0 + noise(40), -22.0 + noise(40, seed=1)
    run = pairs({0: ref, 10: (ref[0] + 1, ref[1] - 5)}, ref=ref)
    assert finding(run, "DVG001")["outcome"] == "silent"


def test_pairs_inside_the_noise_cannot_tell(pairs, finding, noise):
    """Mean -1 with a spread of 10 over 20 pairs: the interval is about +-6."""
    ref = -40.0 + noise(20), -40.0 + noise(20, seed=1)
    delta = noise(20, 10.0, 2)
    run = pairs({0: ref, 10: (ref[0] - 1 + delta - delta.mean(), ref[1] - 5)}, ref=ref)
    found = finding(run, "DVG001")
    assert found["outcome"] == "not_applicable" and found["reason"].startswith("cannot tell")


def test_a_fall_after_a_rise_is_found_against_the_best_step(pairs, finding, noise):
    """+6 at step 10, +3 at step 20: above the reference throughout, yet 3 nats below its best while the loss fell."""
    ref = -40.0 + noise(40), -40.0 + noise(40, seed=1)
    run = pairs({0: ref, 10: (ref[0] + 6, ref[1] - 5), 20: (ref[0] + 3 + noise(40, 0.2, 5), ref[1] - 25)}, ref=ref)
    found = finding(run, "DVG001")
    assert found["outcome"] == "speaks" and found["evidence"]["window"] == "best to last"
    assert found["evidence"]["steps"] == [10, 20]
    assert found["evidence"]["chosen_change"]["value"] == pytest.approx(-3.0, abs=0.1)


def test_chosen_fell_but_the_loss_rose_is_another_matter(pairs, finding, noise):
    ref = -40.0 + noise(40), -40.0 + noise(40, seed=1)
    run = pairs({0: ref, 10: (ref[0] - 5 + noise(40, 0.1, 2), ref[1] + 5)}, ref=ref)
    found = finding(run, "DVG001")
    assert found["outcome"] == "silent" and "loss" in found["reason"]


def test_rewards_show_what_batch_noise_of_logps_hides(means, finding, noise):
    """logps/chosen: -137 to -149 under a batch sd of 12; rewards/chosen: 0 to -1.2 with sd 0.1 (a real case)."""
    t = np.linspace(0, 1, 56)
    run = means({
        "loss": 0.69 - 0.2 * t + noise(56, 0.04), "rewards/chosen": -1.2 * t + noise(56, 0.1, 1),
        "rewards/margins": 1.0 * t + noise(56, 0.1, 2), "logps/chosen": -137 - 12 * t + noise(56, 12.0, 3),
    })  # fmt: skip
    found = finding(run, "DVG001")
    assert found["outcome"] == "speaks" and found["evidence"]["unit"] == "reward"
    assert found["evidence"]["chosen_change"]["high"] < -0.9


def test_a_transient_dip_of_an_evaluation_is_no_displacement(means, finding):
    """A healthy run: rewards/chosen -.06, -.78, -.63, .07, .14."""
    run = means(held={
        "loss": [0.626, 0.678, 0.589, 0.565, 0.461], "rewards/chosen": [-0.06, -0.78, -0.63, 0.07, 0.14],
        "rewards/margins": [0.23, 0.59, 0.69, 0.73, 1.0],
    })  # fmt: skip
    assert finding(run, "DVG001")["outcome"] == "silent"


def test_cross_entropy_alone(means, finding):
    """ce/chosen 1.00 -> 1.10 of a fixed set, loss falls: 10 % more nats per token."""
    run = means(held={"loss": [0.69, 0.6, 0.5], "ce/chosen": [1.0, 1.04, 1.1]})
    found = finding(run, "DVG001")
    assert found["outcome"] == "speaks" and found["evidence"]["unit"] == "nats_per_token"
    assert found["evidence"]["chosen_change"]["value"] == pytest.approx(-0.1)


def test_a_loss_that_is_not_recorded_is_not_said_to_have_fallen(means, finding):
    known = finding(means(held={"loss": [0.69, 0.6, 0.5], "ce/chosen": [1.0, 1.04, 1.1]}), "DVG001")
    assert "while the loss fell" in known["reason"]
    unknown = finding(means(held={"ce/chosen": [1.0, 1.04, 1.1]}), "DVG001")
    assert unknown["outcome"] == "speaks" and "whether the loss fell is not recorded" in unknown["reason"]


def test_loss_only_is_not_applicable(means, finding):
    found = finding(means({"loss": [0.69, 0.6, 0.5, 0.5, 0.4, 0.4, 0.3]}), "DVG001")
    assert found["outcome"] == "not_applicable" and "rewards/chosen" in found["reason"]


def test_a_wrong_reference_is_measured_from_the_own_start(means, finding):
    """Rewards of 5 at step 0 that fall to 1.5: 3.5 from their own start, though still above 0."""
    columns = {"loss": [0.69, 0.3, 0.1], "rewards/chosen": [5.0, 3.0, 1.5], "rewards/rejected": [5.0, 1.0, -4.0],
               "rewards/margins": [0.0, 2.0, 5.5]}  # fmt: skip
    found = finding(means(held=columns), "DVG001")
    assert found["outcome"] == "speaks" and found["evidence"]["window"] == "first to last"
    assert found["evidence"]["chosen_change"]["value"] == pytest.approx(-3.5)


def test_a_wrong_reference_below_0_is_no_fall(means, finding):
    """Rewards of -5 at step 0 that rise to -2 did not fall by 2."""
    columns = {"loss": [0.69, 0.3, 0.1], "rewards/chosen": [-5.0, -3.0, -2.0], "rewards/rejected": [-5.0, -5.0, -6.0],
               "rewards/margins": [0.0, 2.0, 4.0]}  # fmt: skip
    assert finding(means(held=columns), "DVG001")["outcome"] == "silent"


@pytest.mark.parametrize(
    ("chosen", "outcome"),
    [
        ([0.0, -1.0, -2.4], "speaks"),  # -2.4, give or take 1.2
        ([0.0, -0.004, -0.002, 0.001], "silent"),
        ([0.1, -0.1, 0.05, -0.2], "silent"),  # -0.075: below the few rows' least of 6 x 0.05
        ([0.9, -0.9, 0.7, -1.5], "not_applicable"),  # -0.4, give or take 1.2
    ],
)
def test_few_training_rows(means, finding, chosen, outcome):
    """Two to five rows: only a fall far beyond all that they move among themselves is one."""
    n = len(chosen)
    columns = {"loss": np.linspace(0.69, 0.4, n), "rewards/chosen": chosen, "rewards/margins": np.linspace(0, 1, n)}
    assert finding(means(columns, every=1), "DVG001")["outcome"] == outcome


def test_a_fall_without_any_margin_is_material(means, finding):
    """Both sides fall by 2 alike: nothing makes up for it. The loss did not fall: silent, with the number."""
    columns = {"loss": [0.693, 0.694, 0.695], "rewards/chosen": [0.0, -1.0, -2.0], "rewards/rejected": [0, -1.0, -2.0],
               "rewards/margins": [0.0, 0.0, 0.0]}  # fmt: skip
    found = finding(means(held=columns), "DVG001")
    assert found["outcome"] == "silent" and found["evidence"]["material"] and "reward fell by 2," in found["reason"]


def test_a_fall_beside_a_collapse_is_no_smaller_for_it(means, finding, noise):
    """Chosen's reward falls to -1.5, rejected's to -22: the fall is 7 % of the margin's 20.5, under a tenth; chosen's
    log-prob falls from -100 to -115, by 15 % (the noise of 1 nat leaves at least 10 %). Where the log-probs stay, or
    are not logged, the share of the margin decides."""
    t = np.linspace(0, 1, 40)
    rewards = {"rewards/chosen": -1.5 * t + noise(40, 0.02), "rewards/rejected": -22 * t, "rewards/margins": 20.5 * t,
               "loss": 0.69 * (1 - t)}  # fmt: skip
    found = finding(means({**rewards, "logps/chosen": -100 - 15 * t + noise(40, 1.0)}), "DVG001")
    assert found["outcome"] == "speaks" and 0.08 < found["evidence"]["relative_rise_of_chosen_nll"] < 0.15
    assert finding(means({**rewards, "logps/chosen": -100 + noise(40, 1.0)}), "DVG001")["outcome"] == "silent"
    assert finding(means(rewards), "DVG001")["outcome"] == "silent"
