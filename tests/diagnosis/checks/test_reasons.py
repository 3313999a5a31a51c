"""Reasons that a reader could misread: each says what happened in this run, with the word that its number asks for."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.checks import CheckContext, all_checks, run_checks

SIGMOID = {"types": ["sigmoid"], "beta": 0.1}

WRONG = (
    r"\d%",
    r"(fell|rose|improved|dropped) by -",
    r" -> ",
    r"\bat 1 steps",
    r"\b1 (pairs|rows|steps) (are|have)",
)
"""A share without its blank, a word against its sign, an arrow of ASCII, a plural of one."""


@pytest.mark.parametrize("code", [check.code for check in all_checks()])
def test_no_reason_of_an_example_has_a_wrong_word(code: str, tmp_path: Path) -> None:
    (check,) = (c for c in all_checks() if c.code == code)
    for name, example in (("bad", check.bad), ("good", check.good)):
        for found in run_checks(CheckContext.from_run(example.write(tmp_path / name))):
            for wrong in WRONG:
                assert not re.search(wrong, found["reason"]), (found["code"], found["reason"])


def test_an_overfit_that_starts_at_once_has_no_minimum_to_stop_at(pairs) -> None:
    """The held-out loss rises from step 0 on: 10 of 10 pairs lose 5 nats of margin."""
    c, r = np.full(10, -20.0), np.full(10, -22.0)
    run = pairs({0: (c, r), 5: (c - 5 - np.arange(10) / 10, r)}, ref=(c, r))
    (found,) = (f for f in run_checks(CheckContext.from_run(run)) if f["code"] == "DVG022")
    assert found["outcome"] == "speaks"
    assert found["try"] == ["lower the learning rate: the held-out loss rose from its start on"]


def test_two_tokenizers_are_named_and_two_counts_are_counted(pairs, finding) -> None:
    sums = {0: ([-10.0] * 4, -10.0), 5: ([-9.0] * 4, -12.0)}
    counted = finding(pairs(sums, columns={"n_tokens": {5: ([10, 10, 13, 13], 10)}}), "DVG015")
    assert counted["reason"].startswith("25 % of the responses have another number of tokens at another step")


def reason(run, code: str) -> str:
    (found,) = (f for f in run_checks(CheckContext.from_run(run)) if f["code"] == code)
    assert found["outcome"] == "speaks", found["reason"]
    return str(found["reason"])


def test_a_collapse_is_told_in_nats_per_token(pairs, means, noise) -> None:
    """Rejected falls from -10 to -38 over 20 tokens: -0.5 to -1.9, though that is 280 % of it; reward -2.8 at beta 0.1.
    A log without lengths says nats per response, one of rewards alone the reward: over the last 7 of 30 rows t is
    26/29 on average, so -8.07, and -100.7."""
    ref = np.full(20, -10.0), np.full(20, -10.0)
    run = pairs({0: ref, 9: (ref[0] + 1, ref[1] - 28)}, n_c=20, n_r=20, ref=ref)
    assert reason(run, "DVG002").startswith(
        "rejected's log-prob fell from -0.500 to -1.900 nats per token, its implicit reward is -2.80; likelihoods alone"
    )
    t = np.linspace(0, 1, 30)
    rewards = {"loss": 0.69 * (1 - t) + 0.01, "rewards/rejected": -9 * t, "rewards/margins": 10 * t}
    assert reason(means(rewards), "DVG002").startswith("rejected: its implicit reward is -8")
    logged = means(rewards | {"logps/rejected": -20 - 90 * t}, logps="sum", loss={"types": ["sigmoid"], "beta": 0.1})
    assert "fell from -20.0 to -100.7 nats per response, its implicit reward is -8.07" in reason(logged, "DVG002")


def test_likelihoods_alone_is_said_only_where_they_are_alone(means) -> None:
    fallen = {"loss": [0.69, 0.6, 0.5], "rewards/chosen": [0.0, -0.3, -0.6], "rewards/margins": [0.0, 0.4, 0.9]}
    assert reason(means(held=fallen), "DVG001").endswith("compare outputs or a task score")
    scored = means(held=fallen | {"score/accuracy@held_out": [0.7, 0.5, 0.4]}, weight=1000)
    told = reason(scored, "DVG001")
    assert told.startswith("chosen's implicit reward fell by 0.600 (") and "likelihoods alone" not in told


def test_a_loss_that_rose_is_said_to_have_risen(pairs) -> None:
    """The margin falls by 4 nats in each pair: -log sigmoid(-0.4) = 0.913 is 0.220 above ln 2."""
    c, r = np.full(12, -20.0), np.full(12, -22.0)
    told = reason(pairs({0: (c, r), 5: (c - 4, r)}, ref=(c, r)), "DVG009")
    assert told == "the loss of the fixed set rose by 0.220 (99 % interval +0.220 to +0.220): it did not fall"


def test_scores_outside_the_window_are_not_called_absent(means, finding) -> None:
    """Four evaluations at steps 0 to 15; between 5 and 10 lie two of them."""
    run = means(held={"loss": [0.69, 0.6, 0.5, 0.4], "score/accuracy@held_out": [0.5, 0.6, 0.6, 0.4]}, weight=300)
    assert finding(run, "DVG019", from_step=5, to_step=10)["reason"] == (
        "fewer than three evaluations of a task score lie between these steps"
    )
    without = means(held={"loss": [0.69, 0.6, 0.5]})
    assert finding(without, "DVG019")["reason"].startswith("no task score at three steps")


def test_a_floor_of_two_rows_does_not_stay(means, finding) -> None:
    """Six rows, the last two of them at 0: counted, without since when; of 20 rows in a row it is said."""
    two = finding(means({"loss": [0.69, 0.6, 0.5, 0.4, 0.001, 0.001]}, loss=SIGMOID), "DVG010")
    assert two["reason"] == "the loss of train ends at 0.001, its floor (0): 2 of its 6 rows are there"
    many = finding(means({"loss": [0.69, 0.5, *[0.001] * 20]}, loss=SIGMOID), "DVG010")
    assert many["reason"].endswith(": 20 of its 22 rows are there, all 20 from step 15 on")


def test_a_loss_of_0_beside_nan_is_no_floor(means, finding) -> None:
    """transformers logs a loss of 0 for a batch whose loss is NaN: its rewards are NaN in the same rows."""
    loss, reward = [0.69, 0.68, 0.67, 0.66, 0.0, 0.0, 0.0], [0.0, 0.01, 0.02, 0.03, math.nan, math.nan, math.nan]
    assert finding(means({"loss": loss, "rewards/chosen": reward}, loss=SIGMOID), "DVG010")["outcome"] == "silent"
    whole = means({"loss": loss, "rewards/chosen": [0.0] * 7}, loss=SIGMOID)
    assert finding(whole, "DVG010")["outcome"] == "speaks"


def test_why_no_source_tells_how_a_side_moved(means, pairs, finding) -> None:
    """What is missing is said of pairs and means apart: a run with pairs is not told that it has none."""
    nothing = finding(means({"loss": [0.69, 0.6, 0.5]}), "DVG001")["reason"]
    assert nothing == (
        "the run holds no per-pair records (means only, or none), and neither rewards/chosen, logps/chosen nor "
        "ce/chosen is logged"
    )
    free = means({"loss": [0.69, 0.6], "rewards/chosen": [-1.0, -2.0]}, reference_free=True)
    assert finding(free, "DVG001")["reason"].endswith(", and rewards/chosen holds no reference")
    short = finding(means({"rewards/rejected": [-1.0]}), "DVG002")["reason"]
    assert short.endswith(", and rewards/rejected is logged at too few steps")
    two = pairs({0: ([-10.0, -11.0], -20.0), 5: ([-9.0, -9.5], -20.0)})
    assert finding(two, "DVG001")["reason"] == (
        "fewer than three pairs are finite at both steps, and neither rewards/chosen, logps/chosen nor ce/chosen is "
        "logged"
    )
    summed = means({
        "loss": [2.7402, 2.6794, 2.6198, 2.5614, 2.5041, 2.448], "rewards/chosen": [0.0, -0.2, -0.4, -0.6, -0.8, -1.0],
        "rewards/margins": [0.0646, 0.187, 0.3105, 0.4346, 0.5588, 0.6833], "rewards/accuracies": [3.2] * 6,
    })  # fmt: skip
    refused = finding(summed, "DVG001")["reason"]
    assert refused.endswith("and rewards/chosen cannot be used (what train logs is implausible, see DVG028)")


def test_what_did_not_improve_is_what_was_logged(means, finding) -> None:
    """A loss alone, flat over 24 rows around ln 2: nothing is said of a margin or an accuracy that nobody logged, and
    the rows are all of them."""
    loss = 0.6931 + 0.001 * (-1.0) ** np.arange(24)
    said = finding(means({"loss": loss}, loss=SIGMOID), "DVG009")["reason"]
    assert said.endswith("over 24 rows: nothing that matters beyond noise")
    both = finding(means({"loss": loss, "rewards/margins": loss - 0.6931}, loss=SIGMOID), "DVG009")["reason"]
    assert both.endswith("over 24 rows: nothing that matters beyond noise, in margin neither")


def test_the_ends_of_a_change_have_one_name(means, finding) -> None:
    """Six rows: three of them are the last ones, in the check as in the explanation. The reward falls by 1 a row to -5:
    the mean of the last three is -4."""
    run = means({"loss": np.linspace(0.69, 0.2, 6), "rewards/chosen": -np.arange(6.0)}, loss=SIGMOID)
    said = finding(run, "DVG001")["reason"]
    assert said.startswith("chosen's implicit reward fell by 4 (from the reference to the mean of the last 3 of 6 rows")
    told = " ".join(s["text"] for s in explain(run)["narrative"][0]["sentences"])
    assert "rewards/chosen fell 0 → -4, from the reference to the mean of the last 3 of 6 rows" in told
