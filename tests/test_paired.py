"""The same questions at two checkpoints: interval and test by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multinomial

from dpo_diag import paired, stats


def test_the_same_questions_twice() -> None:
    """107 of 150 right, then 90: 25 lost, 8 won. -17/150; variance (33 - 17^2/150) / 149 = .20855, standard error
    .03729, t(149) = 1.976: -.1870 to -.0397. As two independent samples it would be -.217 to -.006.

    McNemar: 2 P(X <= 8 | 33, 1/2) = .0046.
    """
    before = np.r_[np.ones(107), np.zeros(43)]
    after = np.r_[np.ones(82), np.zeros(25), np.ones(8), np.zeros(35)]
    change = paired.paired_change(before, after)
    assert change.delta.value == pytest.approx(-17 / 150) and change.delta.n == 150
    assert change.delta.bounds == pytest.approx([-0.1870, -0.0397], abs=5e-5) and change.delta.method == "paired t"
    assert change.p == pytest.approx(2 * sum(math.comb(33, k) for k in range(9)) / 2**33)
    assert stats.proportion_change(107 / 150, 150, 90 / 150, 150).bounds == pytest.approx([-0.217, -0.006], abs=5e-4)


def test_few_changed_answers_have_agresti_and_mins_interval() -> None:
    """100 questions, 7 lost, 2 won: centre -5/102, half 1.96 sqrt((10/102 - (5/102)^2) / 102)."""
    few = paired.paired_proportion_change(7, 2, 100)
    half = 1.959964 * math.sqrt((10 / 102 - (5 / 102) ** 2) / 102)
    assert few.value == pytest.approx(-0.05) and few.method == "paired, Agresti-Min"
    assert few.bounds == pytest.approx([-5 / 102 - half, -5 / 102 + half])
    assert paired.paired_proportion_change(0, 0, 50).low < 0 < paired.paired_proportion_change(0, 0, 50).high


@pytest.mark.parametrize(
    ("n", "lost", "won", "covers", "t_covers"), [(30, 0.05, 0.01, 0.999, 0.78), (150, 0.15, 0.05, 0.949, 0.949)]
)
def test_the_interval_covers_the_truth(n: int, lost: float, won: float, covers: float, t_covers: float) -> None:
    """Every outcome (i lost, j won) of a multinomial with its probability: how often the interval holds won - lost. The
    bare t interval, which vanishes where nothing changed, holds it in 78 % of samples of 30 with rare changes."""
    covered = covered_t = 0.0
    for i in range(n + 1):
        for j in range(n + 1 - i):
            p = multinomial.pmf([i, j, n - i - j], n, [lost, won, 1 - lost - won]) if i + j < 0.6 * n else 0.0
            if p > 1e-9:
                own = paired.paired_proportion_change(i, j, n)
                t = stats.t_interval(np.r_[-np.ones(i), np.ones(j), np.zeros(n - i - j)])
                covered += p * (own.low <= won - lost <= own.high)
                covered_t += p * (t.low <= won - lost <= t.high)
    assert covered == pytest.approx(covers, abs=0.006) and covered_t == pytest.approx(t_covers, abs=0.006)


def test_questions_of_one_source_are_clustered() -> None:
    """Four sources of two questions, differences 1 1, 0 0, 1 1, 0 0: mean .5, deviations of the clusters +-1, variance
    4/3 (4) / 64 = 1/12, t(3) = 3.1824: half .919. Taken apart they would be 8 values: half .447. The test flips whole
    sources: two that changed, 2 / 2^2 = .5."""
    before, after = np.zeros(8), np.array([1.0, 1, 0, 0, 1, 1, 0, 0])
    change = paired.paired_change(before, after, clusters=["a", "a", "b", "b", "c", "c", "d", "d"])
    assert (change.delta.value, change.delta.n, change.p) == (0.5, 8, 0.5)
    assert change.delta.high - 0.5 == pytest.approx(3.18245 * math.sqrt(1 / 12), abs=1e-4)
    assert change.delta.method == "t, clustered in 4 sources"
    apart = paired.paired_change(before, after, clusters=list("abcdefgh"))
    assert apart.delta == paired.paired_change(before, after).delta


def test_paired_scores_leave_out_what_has_no_partner() -> None:
    change = paired.paired_change([0, 0, 0.5, math.nan, 0], [1, 1, 0.5, 1, math.nan])
    assert change.delta.n == 3 and change.delta.value == pytest.approx(2 / 3) and change.p == 0.5
    assert paired.paired_change([1, 2], [1, 2]).effect == 0 and paired.paired_change([1, 1], [2, 2]).effect == math.inf
    assert paired.paired_change([], []).delta.n == 0 and math.isnan(paired.paired_change([], []).p)


def test_mcnemar_by_hand() -> None:
    """8 gained, 1 lost: P(X >= 8 | 9) = (9 + 1) / 512; two-sided twice that."""
    assert paired.mcnemar(1, 8) == paired.mcnemar(8, 1) == pytest.approx(20 / 512)
    assert paired.mcnemar(0, 0) == 1.0 and paired.mcnemar(3, 3) == 1.0


def test_sign_flip_equals_enumeration() -> None:
    """All 2^6 sign patterns of 1, 2, 3, 4, 5, 1, counted: the share with a sum as far from 0 as 14."""
    d = np.array([1.0, 2, 3, 4, 5, -1])
    sums = [abs(np.dot(s, np.abs(d))) for s in itertools.product((1, -1), repeat=6)]
    assert paired.sign_flip(d) == pytest.approx(np.mean(np.array(sums) >= abs(d.sum())), abs=0.01)
    assert paired.sign_flip([0, 0]) == 1.0
    assert paired.sign_flip([1.0] * 8) == pytest.approx(2 / 256)
