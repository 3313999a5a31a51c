"""DVG007: the policy did not start at its reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_diag.diagnosis.checks import CheckContext
from dpo_diag.thresholds import load_thresholds

LN2 = math.log(2)
SIGMOID = {"types": ["sigmoid"], "beta": 0.1}


def test_pairs_two_nats_away_at_step_0(pairs, finding, noise):
    ref = np.full(20, -30.0), np.full(20, -30.0)
    run = pairs({0: (ref[0] + 2, ref[1] - 2), 5: (ref[0], ref[1] - 5)}, ref=ref)
    found = finding(run, "DVG007")
    assert found["outcome"] == "speaks" and found["severity"] == "error"
    assert found["evidence"]["mean_abs_log_ratio_at_step_0"] == pytest.approx(2.0)


def test_pairs_at_the_reference(pairs, finding, noise):
    ref = np.full(20, -30.0), np.full(20, -30.0)
    run = pairs({0: (ref[0] + noise(20, 0.01), ref[1]), 5: (ref[0], ref[1] - 5)}, ref=ref)
    assert finding(run, "DVG007")["outcome"] == "silent"


def test_an_evaluation_at_step_0_with_rewards_of_0_is_a_start(means, finding):
    """No training rows: the fixed set's rewards, 0 at step 0, say that the policy starts at its reference."""
    run = means(held={"rewards/margins": [0.0, 0.2, 0.4], "rewards/chosen": [0.0, 0.1, 0.2]})
    found = finding(run, "DVG007")
    assert found["outcome"] == "silent"
    assert found["evidence"]["rewards_at_step_0"] == {"eval:rewards/margins": 0.0, "eval:rewards/chosen": 0.0}
    assert finding(means(held={"rewards/margins": [0.3, 0.4, 0.5]}), "DVG007")["outcome"] == "speaks"


def test_first_loss_of_a_wrong_reference(means, finding):
    """FACTS: a reference reloaded from disk gives a first loss of .733 instead of .693."""
    found = finding(means({"loss": [0.733, 0.73, 0.72, 0.70, 0.68, 0.66, 0.64]}, every=1, loss=SIGMOID), "DVG007")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["expected_first_loss"] == pytest.approx(LN2)


@pytest.mark.parametrize(
    ("loss", "first"),
    [
        ({"types": ["sigmoid"]}, LN2),
        ({"types": ["ipo"], "beta": 0.1}, 25.0),
        ({"types": ["hinge"]}, 1.0),
        ({"types": ["cdpo"], "label_smoothing": 0.1}, LN2),
        ({"types": ["apo_zero"]}, 1.0),
    ],
)
def test_each_loss_has_its_own_start(means, finding, loss, first):
    """(1 / (2 beta))^2 = 25 for ipo; hinge 1; apo_zero 0.5 + 0.5; label smoothing leaves ln 2."""
    run = means({"loss": [first * f for f in (1.0, 0.99, 0.98, 0.96, 0.95, 0.93, 0.91)]}, every=1, loss=loss)
    assert finding(run, "DVG007")["outcome"] == "silent"


def test_an_nll_term_explains_its_share(means, finding):
    """1.238 - 0.545 = 0.693."""
    run = means({"loss": [1.238, 1.2, 1.1, 1.0, 0.9, 0.9], "nll_loss": [0.545, 0.53, 0.5, 0.5, 0.5, 0.5]}, every=1)
    assert finding(run, "DVG007")["outcome"] == "silent"


def test_no_gradient_and_yet_a_margin(means, finding):
    """Nothing can have moved: rewards/chosen of .16 in the first row mean another starting point (a real case)."""
    run = means({
        "loss": [0.61, 0.608, 0.602, 0.602, 0.61, 0.609], "grad_norm": [0.0] * 6,
        "rewards/chosen": [0.16, 0.168, 0.2, 0.21, 0.2, 0.18], "rewards/margins": [0.156, 0.161, 0.19, 0.2, 0.19, 0.18],
    })  # fmt: skip
    assert finding(run, "DVG007")["outcome"] == "speaks"


def test_a_first_row_after_many_steps_shows_no_start(means, finding):
    t = np.arange(1, 12)
    m = 1.5 * (1 - np.exp(-t / 2))
    run = means({"loss": np.log1p(np.exp(-m)), "rewards/margins": m, "rewards/chosen": m / 2}, every=100)
    assert finding(run, "DVG007")["outcome"] == "silent"


def test_unknown_loss_type_cannot_tell(means, finding):
    """Loss only, away from ln 2, and nothing says that it is DPO."""
    found = finding(means({"loss": [1.4, 1.39, 1.38, 1.4, 1.37, 1.36]}, every=1), "DVG007")
    assert found["outcome"] == "not_applicable" and found["reason"].startswith("cannot tell")


@pytest.mark.parametrize("k", [2, 4, 6, 16])
def test_a_first_loss_of_k_starts_with_rewards_of_0_is_a_sum(means, finding, k):
    """k x 0.6931 beside rewards of 0: the policy is at its reference, the loss is a sum, and no error is claimed."""
    loss = [k * f * LN2 for f in (1.0, 0.99, 0.97, 0.94, 0.9, 0.85, 0.8)]
    run = means({"loss": loss, "rewards/chosen": [0.0, 0.01, 0.02, 0.04, 0.06, 0.1, 0.1]}, every=1)
    found = finding(run, "DVG007")
    assert (found["outcome"], found["severity"]) == ("speaks", "warning")
    assert found["evidence"]["multiple_of_start"] == k
    advice = f"divide the logged loss by {k}; if the gradient is scaled too, the rate acts {k} times as large"
    assert found["try"] == [advice]
    assert f"= {k}.00 x ln 2" in found["reason"] and f"a sum over {k} micro-batches" in found["reason"]


def test_a_sum_is_named_from_the_loss_alone_with_its_other_reading(means, finding):
    """2.75 / 0.6931 = 3.97: no rewards; with another loss (hinge starts at 1) 4.05 is 4 x 1."""
    run = means(
        {"loss": [2.75, 2.7, 2.6, 2.6, 2.5, 2.4, 2.3]}, loss=SIGMOID, training={"gradient_accumulation_steps": 4}
    )
    found = finding(run, "DVG007")
    assert found["severity"] == "warning" and "as this run's settings say" in found["reason"]
    assert "could rule out a wrong reference" in found["reason"]
    hinge = means({"loss": [4.05, 3.9, 3.8, 3.7, 3.6, 3.4, 3.3]}, loss={"types": ["hinge"], "beta": 0.1})
    assert "4.05 x 1" in finding(hinge, "DVG007")["reason"]
    assert finding(means({"loss": [2.77, 2.7, 2.6, 2.6, 2.5, 2.4, 2.3]}), "DVG007")["outcome"] == "not_applicable"


def test_a_wrong_reference_whose_rewards_show_it_is_no_sum(means, finding):
    """The first loss is 4.0 x ln 2, but chosen's reward is -2.4 at once: the reference is another model."""
    run = means(
        {"loss": [2.77, 2.76, 2.75, 2.75, 2.74, 2.73], "rewards/chosen": [-2.4, -2.4, -2.39, -2.38, -2.37, -2.36]},
        every=1, loss=SIGMOID,
    )  # fmt: skip
    found = finding(run, "DVG007")
    assert found["severity"] == "error" and "multiple_of_start" not in found["evidence"]


COUNTED = {"source": {"steps": "counted"}}


def test_a_counted_row_is_no_step(means, finding):
    """A healthy run logged every k steps: its first row, 0.15 below ln 2, is silent where the rows move as fast, and
    tells nothing where they do not; stated as step 1 it is a mismatch."""
    learning = {
        "loss": [0.54, 0.46, 0.40, 0.35, 0.31, 0.28, 0.26],
        "rewards/chosen": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
    }
    found = finding(means(learning, every=1, loss=SIGMOID, **COUNTED), "DVG007")
    assert found["outcome"] == "silent" and "first_step" not in found["evidence"]
    flat = {"loss": [0.54, 0.539, 0.538, 0.537, 0.536, 0.535, 0.534]}
    found = finding(means(flat, every=1, loss=SIGMOID, **COUNTED), "DVG007")
    assert found["outcome"] == "not_applicable" and "how many steps" in found["reason"]
    assert finding(means(flat, every=1, loss=SIGMOID), "DVG007")["outcome"] == "speaks"


def test_counted_rows_that_learned_nothing_but_stand_far_from_0(means, finding):
    """The loss is at ln 2, so nothing was learned, and chosen is 5 in every row: no number of steps explains it."""
    far = {"loss": [0.70, 0.69, 0.70, 0.69, 0.70, 0.69], "rewards/chosen": [5.0, 5.01, 4.99, 5.0, 5.01, 5.0]}
    assert finding(means(far, every=1, loss=SIGMOID, **COUNTED), "DVG007")["outcome"] == "speaks"
    # The same rewards where the loss did fall may have been learned in a long first interval.
    fell = {**far, "loss": [0.40, 0.39, 0.40, 0.39, 0.40, 0.39]}
    assert finding(means(fell, every=1, loss=SIGMOID, **COUNTED), "DVG007")["outcome"] == "not_applicable"


def test_an_evaluation_before_the_first_counted_row_is_no_step_0(means, finding):
    held = {"rewards/margins": [0.3, 0.4, 0.5]}
    assert finding(means(held=held, **COUNTED), "DVG007")["outcome"] == "not_applicable"


START = {"agrees": False, "expected": True, "why": "no other reference was handed in (model)", "mean_gap": 2.18,
         "largest_gap": 4.1, "tolerance": 0.01, "responses": 8, "cause": "the trainer loaded it again"}  # fmt: skip


def test_what_the_trainer_saw_before_the_first_step_is_cited(means, finding):
    """Nothing else of the start is recorded; where they agreed, the first rows may stand anywhere."""
    run = means(held={"rewards/margins": [0.0, 0.2, 0.4]}, reference={"start": START})
    found = finding(run, "DVG007")
    assert (found["outcome"], found["severity"]) == ("speaks", "error")
    assert "by 2.18" in found["reason"] and found["reason"].endswith("(model): the trainer loaded it again")
    rows = {"loss": [0.9, 0.9, 0.89, 0.9, 0.88, 0.87], "rewards/chosen": [-2.0, -2.1, -2.0, -2.0, -2.1, -2.0]}
    agreed = means(rows, reference={"start": {**START, "agrees": True, "cause": None}})
    assert finding(agreed, "DVG007")["outcome"] == "silent"
    assert finding(means(rows), "DVG007")["outcome"] == "speaks"


def test_a_reference_that_was_named_is_no_error(pairs, finding):
    """The policy is 2 nats from it at step 0, as it should be: it is another model."""
    ref = np.full(20, -30.0), np.full(20, -30.0)
    named = {**START, "expected": False, "why": "another reference was handed in (base)", "cause": None}
    run = pairs({0: (ref[0] + 2, ref[1] - 2), 5: (ref[0], ref[1] - 5)}, ref=ref, reference={"start": named})
    found = finding(run, "DVG007")
    assert (found["outcome"], found["severity"]) == ("speaks", "info")
    assert CheckContext.from_run(run).wrong_reference(load_thresholds())  # rewards do not start at 0
    assert "another reference was handed in (base), so what counts is the change since the start" in found["reason"]


def test_a_fast_start_is_no_wrong_reference(means, finding):
    """A row every 10 steps: chosen reaches 0.23 within the first ten and stays, rejected goes on by 0.25 a row: what
    the first steps moved one side they can have moved the other. The loss lies below its start."""
    columns = {"loss": [0.48, 0.42, 0.36, 0.32, 0.3, 0.28, 0.26],
               "rewards/chosen": [0.23, 0.27, 0.29, 0.27, 0.29, 0.3, 0.3],
               "rewards/rejected": [-0.25, -0.3, -0.55, -0.64, -0.7, -0.8, -0.9]}  # fmt: skip
    assert finding(means(columns, every=10), "DVG007")["outcome"] != "speaks"


def test_rewards_far_from_0_under_a_loss_above_its_start(means, finding):
    """Batches of two pairs, no steps: chosen scatters around 9.1 (sd 2) from the first row on and hardly drifts, while
    the loss is 2 on average. The first batch alone happens to lie below ln 2."""
    columns = {"loss": [0.33, 4.3, 3.6, 0.07, 1.15, 2.1, 0.01, 3.9],
               "rewards/chosen": [9.8, 10.4, 8.7, 10.0, 4.9, 11.0, 9, 6.4],
               "rewards/rejected": [5.7, 14.3, 12.2, 6.0, 4.0, 11.8, 3.8, 6.3]}  # fmt: skip
    found = finding(means(columns, source={"steps": "counted"}), "DVG007")
    assert (found["outcome"], found["severity"]) == ("speaks", "error")
    assert "rewards/chosen is 9.13 over the first 6 rows" in found["reason"]


def test_what_16_bits_round_is_no_mismatch(pairs, finding):
    """1.2 nats per response at step 0: an adapter merged in bf16; before the first step 3.4 were allowed."""
    ref = np.full(20, -300.0), np.full(20, -300.0)
    agreed = {**START, "agrees": True, "mean_gap": 1.2, "tolerance": 3.4, "cause": None}
    sums = {0: (ref[0] + 1.2, ref[1] - 1.2), 5: (ref[0], ref[1] - 5)}
    assert finding(pairs(sums, ref=ref, reference={"start": agreed}), "DVG007")["outcome"] == "silent"


def test_a_fast_start_that_saturates_is_no_wrong_reference(means, finding):
    """A row every 10 steps: both rewards move in proportion (0.25 and -2 a row, six rows), so they were 0 at step 0;
    the loss, log(1 + exp(-2.25)) = 0.1002 in the first row, then moves by 0.09 and 0.01 only. Rewards that stand where
    the first row has them speak, whatever the loss."""
    steps = np.minimum(np.arange(1, 21), 6.0)
    rewards = {"rewards/chosen": 0.25 * steps, "rewards/rejected": -2.0 * steps}
    loss = np.log1p(np.exp(-2.25 * steps))
    assert loss[0] == pytest.approx(0.1002, abs=1e-4)
    assert finding(means({"loss": loss, **rewards}, every=10, loss=SIGMOID), "DVG007")["outcome"] == "silent"
    stands = {"rewards/chosen": np.full(20, 0.25), "rewards/rejected": np.full(20, -2.0)}
    still = means({"loss": np.full(20, loss[0]), **stands}, every=10, loss=SIGMOID)
    assert finding(still, "DVG007")["outcome"] == "speaks"


def test_rewards_far_from_0_in_a_late_first_row_whose_loss_lies_above_the_start(means, finding):
    """Rows every 20 steps: chosen 4.2, rejected 5.2, a loss of ln(1 + e) = 1.31 falling to ln 2 by row 6. Step 20 is
    late, but nothing that teaches leads above ln 2, and no row moves by more than 0.4."""
    chosen, rejected = np.linspace(4.2, 1.2, 16), np.linspace(5.2, -0.8, 16)
    columns = {"rewards/chosen": chosen, "rewards/rejected": rejected, "loss": np.log1p(np.exp(rejected - chosen))}
    found = finding(means(columns, every=20), "DVG007")
    assert found["outcome"] == "speaks" and found["reason"].startswith("rewards/chosen is 4.2 in the first row")


def test_rows_that_learn_meanwhile_are_no_wrong_reference(means, finding):
    """Six first rows around ln 2 (median 0.694), the last three below it (median 0.63): the level of chosen,
    -0.22, was learned."""
    loss = [0.751, 0.717, 0.671, 0.744, 0.632, 0.532, *np.linspace(0.5, 0.2, 24)]
    chosen = [-0.02, -0.23, -0.37, -0.36, -0.18, -0.18, *np.linspace(-0.4, -2.5, 24)]
    found = finding(means({"loss": loss, "rewards/chosen": chosen}, every=12), "DVG007")
    assert found["outcome"] == "silent"
