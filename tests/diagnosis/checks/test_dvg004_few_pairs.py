"""DVG004: a few pairs carry the rise of chosen ppl_seq_mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_diag.diagnosis.checks.dvg004_few_pairs import carriers, top_share


def test_two_of_forty_carry_everything(pairs, finding):
    """CE 1 everywhere; two pairs rise to 4. k = 5 % of 40 = 2. Gross rise = 2 (e^4 - e), all theirs: share 1."""
    after = [-40.0 if i < 2 else -10.0 for i in range(40)]
    found = finding(pairs({0: ([-10.0] * 40, -10.0), 5: (after, -20.0)}), "DVG004")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["share_of_rise"] == pytest.approx(1.0)
    assert set(found["evidence"]["pair_ids"]) == {"pair000", "pair001"}
    expected = math.log((38 * math.e + 2 * math.exp(4)) / 40) - 1
    assert found["evidence"]["dlog_ppl_seq_mean"] == pytest.approx(expected)
    assert found["evidence"]["without_them"] == pytest.approx(0.0)


def test_a_rise_that_all_share_is_silent(pairs, finding, noise):
    run = pairs({0: ([-10.0] * 40, -10.0), 5: (-12.0 + noise(40, 0.3), -20.0)})
    found = finding(run, "DVG004")
    assert found["outcome"] == "silent" and found["evidence"]["share_of_rise"] < 0.2


def test_ten_pairs_are_too_few(pairs, finding):
    found = finding(pairs({0: ([-10.0] * 10, -10.0), 5: (-12.0, -20.0)}), "DVG004")
    assert found["outcome"] == "not_applicable" and "10 pairs" in found["reason"]


def test_top_share_counts_rises_alone():
    """Rises 5, 3, 2 of 10 in all: the largest carries half; nothing rose: no share."""
    assert top_share(np.array([5.0, 3.0, 2.0, -9.0]), 1) == 0.5
    assert math.isnan(top_share(np.array([-1.0]), 1))


def test_the_pairs_that_carry_it_are_counted(pairs, finding, noise):
    """CE 1 of 150 pairs; two rise to 4 and 3.9, the others scatter by 0.01: two of 150, not the 5 % (seven) that could.
    e^4 = 54.6 alone is 53 % of the two, but the second rose by nearly as much and belongs to them."""
    after = -10.0 + noise(150, 0.1)
    after[[3, 70]] = -40.0, -39.0
    found = finding(pairs({0: ([-10.0] * 150, -10.0), 5: (after, -20.0)}), "DVG004")
    assert found["reason"].startswith("2 of 150 pairs carry 9")
    assert (found["evidence"]["k"], set(found["evidence"]["pair_ids"])) == (2, {"pair003", "pair070"})


@pytest.mark.parametrize(
    ("gains", "k"),
    [([30, 28, 0.1, 0.1], 2), ([9, 1, 1, 1], 1), ([5, 5, 5, 5], 3), ([-1, -2], 3), ([6, 2, 2], 1), ([3, 1.4, 1.2], 1)],
)
def test_carriers(gains, k):
    """Half of the gross rise: 30 of 58.2, and 28 is alike; 9 of 12; 5 + 5 of 20 and the other two are alike, but three
    are the most; nothing rose; 6 of 10, and 2 is less than half of it; 3 of 5.6, and 1.4 is less than half."""
    assert carriers(np.array(gains, dtype=float), 0.5, 3) == k
