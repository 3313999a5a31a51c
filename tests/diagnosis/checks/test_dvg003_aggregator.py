"""DVG003: one perplexity rose, another fell."""

from __future__ import annotations

import math

import numpy as np
import pytest


def test_worked_example_of_the_design(pairs, finding):
    """CE [1, 1, 9, 1] -> [4, 4, 4, 4] (one token each): the mean rises from 3 to 4, ppl_seq_mean falls 2027.8 -> 54.6.

    Ten copies make 40 pairs. log ppl_seq_mean: 7.6147 -> 4; mean CE and token CE: 3 -> 4.
    """
    before, after = -np.tile([1.0, 1.0, 9.0, 1.0], 10), -np.full(40, 4.0)
    run = pairs({0: (before, before), 5: (after, after)}, n_c=1, n_r=1)
    found = finding(run, "DVG003")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["dlog"]["ppl_seq_geomean"] == pytest.approx(1.0)
    assert found["evidence"]["dlog"]["ppl_seq_mean"] == pytest.approx(4 - math.log((3 * math.e + math.exp(9)) / 4))
    assert found["evidence"]["from"]["ppl_seq_mean"] == pytest.approx(2027.81, abs=0.01)
    assert found["evidence"]["to"]["ppl_seq_mean"] == pytest.approx(54.60, abs=0.01)
    assert found["evidence"]["gap_dlog"]["low"] > 0


def test_agreeing_averages_are_silent(pairs, finding, noise):
    ce = 2 + noise(40, 0.2)
    run = pairs({0: (-10 * ce, -10 * ce), 5: (-10.5 * ce, -12 * ce)})
    found = finding(run, "DVG003")
    assert found["outcome"] == "silent" and found["evidence"]["dlog"]["ppl_token"] > 0


def test_logged_perplexities_of_one_set(means, finding):
    run = means(held={"ppl_seq_mean/chosen": [2.3, 2.7], "ppl_token/chosen": [1.78, 1.74]})
    found = finding(run, "DVG003")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["dlog"]["ppl_seq_mean/chosen"] == pytest.approx(math.log(2.7 / 2.3))
    both_rise = means(held={"ppl_seq_mean/chosen": [2.3, 2.7], "ppl_token/chosen": [1.74, 1.78]})
    assert finding(both_rise, "DVG003")["outcome"] == "silent"


def test_one_mean_is_not_enough(means, finding):
    assert finding(means(held={"ppl_seq_mean/chosen": [2.3, 2.7]}), "DVG003")["outcome"] == "not_applicable"
