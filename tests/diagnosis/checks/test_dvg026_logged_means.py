"""DVG026: the trainer's means beside those of the pairs."""

from __future__ import annotations

import numpy as np
import pytest

SIGMOID = {"types": ["sigmoid"], "beta": 0.1}


def test_the_largest_difference_is_named(means, finding):
    """-0.2292 for -0.2550: +0.0258. A log-prob of -101 for -100 is 1 %: inside."""
    run = means(
        held={
            "rewards/margins": [0.0, -0.2550], "trl/rewards/margins": [0.0, -0.2292], "rewards/accuracies": [0.0, 0.4],
            "trl/rewards/accuracies": [0.0, 0.4167], "logps/chosen": [-100.0, -100.0],
            "trl/logps/chosen": [-100.0, -101.0],
        },
        every=10,
    )  # fmt: skip
    found = finding(run, "DVG026")
    assert (found["outcome"], found["severity"]) == ("speaks", "info")
    assert found["evidence"]["metrics"] == 2 and found["evidence"]["compared"] == 6
    worst = found["evidence"]["worst"][0]
    assert worst["difference"] == pytest.approx(0.0258) and (worst["split"], worst["step"]) == ("eval", 10)
    assert "-0.2292 as the trainer averages it, and -0.2550 over all examples: off by +0.0258" in found["reason"]
    assert found["reason"].endswith("history holds the exact means") and found["evidence"]["trainers_means"] is False
    assert finding(run, "DVG026", logged_means_share=0.05)["outcome"] == "silent"


def logged(margin: float) -> list[dict[str, object]]:
    return [{"step": 5, "epoch": None, "split": "eval", "name": "rewards/margins", "value": margin, "weight": None}]


@pytest.mark.parametrize(("margin", "outcome"), [(0.24, "speaks"), (0.21, "silent")])
def test_a_run_whose_history_holds_the_trainers_means(pairs, finding, margin, outcome):
    """beta 0.1; log-ratios a = 1, b = -1 for 19 pairs and a = 1, b = -3 for one: margin 0.1 x (19 x 2 + 4) / 20 = 0.21.
    A trainer whose last batch is that pair alone logs (4 x 0.2 + 0.4) / 5 = 0.24."""
    ref = np.full(20, -30.0), np.full(20, -30.0)
    last = ref[1] - 1
    last[-1] -= 2
    found = finding(pairs({0: ref, 5: (ref[0] + 1, last)}, ref=ref, history=logged(margin)), "DVG026")
    assert found["outcome"] == outcome
    if outcome == "speaks":
        assert found["evidence"]["worst"][0]["exact"] == pytest.approx(0.21)
        assert (
            found["reason"].endswith("history holds the trainer's means")
            and found["evidence"]["trainers_means"] is True
        )


def test_a_set_that_holds_a_pair_twice_is_not_compared(pairs, finding):
    """Its mean counts the pair twice, its records hold it once."""
    ref = np.full(20, -30.0), np.full(20, -30.0)
    splits = {"eval": {"role": "held_out", "n_pairs": 20, "n_duplicates": 3}}
    run = pairs({0: ref, 5: (ref[0], ref[1] - 2)}, ref=ref, history=logged(0.4), splits=splits)
    assert finding(run, "DVG026")["outcome"] == "not_applicable"


def test_an_evaluation_that_is_nan_throughout_is_no_mean_to_compare(pairs, finding):
    ref, nan = np.full(20, -30.0), np.full(20, np.nan)
    found = finding(pairs({0: (ref, ref), 5: (nan, nan)}, ref=(ref, ref), history=logged(np.nan)), "DVG026")
    assert found["outcome"] != "speaks"


def test_a_foreign_log_cannot_be_compared(means, finding):
    assert finding(means(held={"rewards/margins": [0.0, 0.2]}), "DVG026")["outcome"] == "not_applicable"
