"""DVG029: the order in which perplexity puts the two answers, and what it would do to labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_diag.diagnosis.checks import CheckContext, run_checks
from dpo_diag.diagnosis.checks.dvg029_perplexity_order import detector_auc


def test_auc_by_hand_and_by_comparing_every_two_pairs() -> None:
    """Gaps 2, 1, -1.5: sums of two are 3, 0.5, -0.5: 2/3. Ties count half: 1 and -1 sum to 0."""
    assert detector_auc(np.array([2.0, 1.0, -1.5])) == pytest.approx(2 / 3)
    assert detector_auc(np.array([1.0, -1.0])) == 0.5
    assert math.isnan(detector_auc(np.array([1.0])))
    gap = np.round(np.random.default_rng(0).normal(-0.3, 1, 60), 1)
    sums = [gap[i] + gap[j] for i in range(60) for j in range(60) if i != j]
    assert detector_auc(gap) == pytest.approx(np.mean([1.0 if s > 0 else 0.5 if s == 0 else 0.0 for s in sums]))


def test_all_labels_swapped_mirror_the_auc() -> None:
    gap = np.random.default_rng(1).normal(0.4, 1, 50)
    assert detector_auc(-gap) == pytest.approx(1 - detector_auc(gap))


def test_lengths_are_taken_out(pairs, finding) -> None:
    """Chosen -30 over 30 tokens, rejected -20 over 10: in sums rejected is likelier, per token chosen is (1 and 2)."""
    sums = [-30.0] * 24, [-20.0] * 24
    found = finding(pairs({0: sums, 5: ([-29.0] * 24, -25.0)}, n_c=30, n_r=10, ref=sums), "DVG029")
    assert found["outcome"] == "silent" and found["evidence"]["share_rejected_first"]["value"] == 0.0
    assert found["evidence"]["auc"] == 1.0


def test_most_pairs_and_what_the_margin_does_better(pairs, finding) -> None:
    """Rejected first in 22 of 24 pairs (gap -1), chosen in 2 (gap +1). Two of 24 that sum positive: 1 of 276 twos; a
    sum of 0 for 22 * 2 = 44: (1 + 22) / 276. The margin is +6 in all: AUC 1."""
    chosen = [-20.0] * 22 + [-10.0] * 2
    rejected = [-10.0] * 22 + [-20.0] * 2
    sums = chosen, rejected
    run = pairs({0: sums, 5: ([c + 1 for c in chosen], [r - 5 for r in rejected])}, ref=sums)
    found = finding(run, "DVG029")
    assert found["outcome"] == "speaks" and "in 92 % of 24 pairs" in found["reason"]
    assert found["evidence"]["auc"] == pytest.approx(23 / 276)
    assert found["evidence"]["auc_of_margin"] == 1.0 and found["evidence"]["margin_is_better"] is True


def test_without_a_reference_the_first_step_is_asked(pairs, finding) -> None:
    run = pairs({3: ([-20.0] * 24, -10.0), 5: ([-5.0] * 24, -50.0)})
    found = finding(run, "DVG029")
    assert found["outcome"] == "speaks" and found["evidence"]["under"] == "step 3"


@pytest.mark.parametrize(("n", "first", "outcome"), [(24, 15, "not_applicable"), (19, 19, "not_applicable")])
def test_few_or_undecided_pairs_cannot_tell(pairs, finding, n: int, first: int, outcome: str) -> None:
    """15 of 24 is 62 %, whose interval reaches below one half; 19 pairs are too few."""
    chosen = np.where(np.arange(n) < first, -20.0, -5.0)
    run = pairs({0: (chosen, -10.0), 5: (chosen + 1, -12.0)}, ref=(chosen, -10.0))
    assert finding(run, "DVG029")["outcome"] == outcome


def test_no_advice_filters_or_relabels_by_perplexity_then(pairs) -> None:
    """A few pairs carry the rise of perplexity (DVG004), whose rejected answers are the model's own: nobody is sent to
    look for wrong labels by perplexity."""
    chosen, rejected = np.full(40, -20.0), np.full(40, -8.0)
    after = np.where(np.arange(40) < 2, -60.0, chosen)
    run = pairs({0: (chosen, rejected), 5: (after, rejected - 9)}, ref=(chosen, rejected))
    found = {f["code"]: f for f in run_checks(CheckContext.from_run(run))}
    assert found["DVG004"]["outcome"] == found["DVG029"]["outcome"] == "speaks"
    lines = [line for code, f in found.items() if code != "DVG029" for line in f["try"]]
    assert not [line for line in lines if "label" in line or "filter" in line]
