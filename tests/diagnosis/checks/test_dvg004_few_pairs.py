"""DVG004: a few pairs carry the rise of chosen ppl_seq_mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_diag.diagnosis.checks.dvg004_few_pairs import top_share


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
