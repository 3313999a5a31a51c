"""DVG009: nothing improved beyond noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

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
    found = finding(run, "DVG009")
    assert found["outcome"] == "speaks" and found["evidence"]["rose"] is False


def test_pairs_whose_loss_fell(pairs, finding, noise):
    ref = -20 + noise(80), -20 + noise(80, seed=1)
    run = pairs({0: ref, 5: (ref[0] + 2 + noise(80, 0.5, 2), ref[1] - 3)}, ref=ref)
    assert finding(run, "DVG009")["outcome"] == "silent"


def test_an_accuracy_that_wobbles_is_no_learning(means, finding, noise):
    """Loss .693 -> .691, margin .005 at the end; the accuracy goes .45 -> .55 over the run, which is no preference."""
    n = 60
    columns = {
        "loss": np.linspace(0.693, 0.691, n) + noise(n, 0.002, 1), "rewards/margins": np.linspace(0, 0.005, n),
        "rewards/accuracies": np.linspace(0.45, 0.55, n) + noise(n, 0.02, 2),
    }  # fmt: skip
    assert finding(means(columns), "DVG009")["outcome"] == "speaks"
    learned = columns | {"rewards/accuracies": np.linspace(0.5, 0.8, n) + noise(n, 0.02, 2)}
    assert finding(means(learned), "DVG009")["outcome"] == "silent"


def test_an_accuracy_of_0_throughout_is_no_learning_whatever_the_loss_did(means, finding):
    """ORPO: the NLL term falls, the odds ratio stays against chosen in every row."""
    columns = {"loss": np.linspace(0.87, 0.78, 10), "rewards/accuracies": [0.0] * 10,
               "rewards/margins": np.linspace(-0.021, -0.016, 10)}  # fmt: skip
    found = finding(means(columns), "DVG009")
    assert (
        found["outcome"] == "speaks" and "reward accuracy of train is 0 over the last 5 rows of 10" in found["reason"]
    )
    rising = columns | {"rewards/accuracies": np.linspace(0.0, 0.9, 10), "rewards/margins": np.linspace(-0.02, 0.1, 10)}
    assert finding(means(rising), "DVG009")["outcome"] != "speaks"


def test_ties_before_the_first_step_are_no_accuracy(means, finding):
    """All rewards 0 in the first rows count as an accuracy of 0: warm-up, not a failure."""
    columns = {"loss": [0.6931, 0.6931, 0.7058, 0.6912], "rewards/accuracies": [0.0, 0.0, 0.4375, 0.44],
               "rewards/margins": [0.0, 0.0, -0.0235, -0.001]}  # fmt: skip
    assert finding(means(columns, every=1), "DVG009")["outcome"] == "not_applicable"


@pytest.mark.parametrize(
    ("loss", "outcome"),
    [([0.69, 0.4], "silent"), ([0.69, 0.68, 0.695, 0.67], "not_applicable"), ([0.69, 0.5, 0.41, 0.4, 0.3], "silent")],
)
def test_few_rows_tell_a_large_fall_only(means, finding, loss, outcome):
    """.69 -> .4 +- .145; .6825 +- .0125 against .685; .35 +- .195 against .595: both ends say at least .12."""
    assert finding(means({"loss": loss}, every=1), "DVG009")["outcome"] == outcome


def test_a_start_that_is_not_the_reference_s_is_none(means, finding):
    """Sigmoid, but its first rewards are 3 away from the reference: a flat loss of .5 has not fallen from ln 2."""
    n = 60
    columns = {"loss": [0.5] * n, "rewards/chosen": [3.0] * n, "rewards/rejected": [2.2] * n,
               "rewards/margins": [0.8] * n, "rewards/accuracies": [0.7] * n}  # fmt: skip
    assert finding(means(columns, every=1, loss={"types": ["sigmoid"], "beta": 0.1}), "DVG009")["outcome"] == "speaks"


def test_the_last_evaluation_decides(means, finding):
    """Evaluations 0.69, 0.50, 0.52, 0.50, 0.51, 0.50, 0.51, 0.69 without training rows: the loss did not fall to the
    last one, whose number explain prints (the mean of the last two, 0.60, would have)."""
    held = [LN2, 0.50, 0.52, 0.50, 0.51, 0.50, 0.51]
    found = finding(means(held={"loss": [*held, LN2]}), "DVG009")
    assert found["evidence"]["fall_of_loss"] == pytest.approx(0.0) and found["outcome"] == "speaks"
    found = finding(means(held={"loss": [*held, 0.50]}), "DVG009")
    assert found["evidence"]["fall_of_loss"] == pytest.approx(LN2 - 0.5) and found["outcome"] == "silent"


def test_pairs_whose_loss_rose_say_so(pairs, finding, noise):
    """Two checkpoints, no training rows: every margin falls by about 0.1 x 5, the loss rises beyond its noise."""
    ref = -20 + noise(80), -20 + noise(80, seed=1)
    run = pairs({0: ref, 5: (ref[0] - 5 + noise(80, 0.5, 2), ref[1])}, ref=ref)
    found = finding(run, "DVG009")
    assert found["outcome"] == "speaks" and found["evidence"]["rose"] is True
