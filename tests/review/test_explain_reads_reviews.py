"""People's verdicts reach explain: as evidence between two steps, and in DVG018 and DVG019."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.diagnosis.evidence import best_and_last, measures, newest_preferences
from dpo_diag.diagnosis.measure import Measure
from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.diagnosis.verdict import Facts, decide
from dpo_diag.records import load_run
from dpo_diag.review import judgements
from dpo_diag.review.items import choose_items
from dpo_diag.stats import proportion
from tests.review.builders import judgement

THRESHOLDS = {"verdict.benign_margin": 0.05, "verdict.least_harm": 0.02}


def say(run_path: Path, a: str, b: str, outcomes: str) -> None:
    items = choose_items(load_run(run_path), a=a, b=b, n=len(outcomes))
    for item, outcome in zip(items, outcomes, strict=True):
        judgements.append(run_path, judgement(item, outcome))


DISPLACED = {
    "code": "DVG001", "title": "likelihood displacement", "outcome": "speaks", "reason": "chosen fell",
    "severity": "warning", "evidence": {"from_best": False, "loss_fell": True},
}  # fmt: skip


def reviews(run_path: Path, from_step: Step, to_step: int) -> list[Measure]:
    return [m for m in measures(load_run(run_path), from_step, to_step) if m.kind == "review"]


def test_a_clear_preference_for_the_reference_is_harm(run_path: Path) -> None:
    """2 of 24 for step 40: a win rate of 1/12, whose Wilson interval lies below 1/2."""
    say(run_path, "ref", "40", "a" * 22 + "bb")
    (measure,) = reviews(run_path, REFERENCE, 40)
    assert (measure.change.n, measure.before, measure.after) == (24, 0.5, 2 / 24)
    wilson = proportion(2, 24)
    assert measure.change.bounds == pytest.approx([wilson.low - 0.5, wilson.high - 0.5])
    assert measure.direction(THRESHOLDS) == "worse"
    verdict = decide(Facts([DISPLACED], evidence=[(measure, "worse")], n_pairs=50))
    assert verdict.harm == "harmful"
    assert "people's blind preference for step 40 over ref (step 0)" in verdict.text
    # Another pair of steps is not about this change.
    assert reviews(run_path, REFERENCE, 20) == []


def test_a_clear_preference_for_the_last_step_makes_a_fall_benign(run_path: Path) -> None:
    say(run_path, "0", "40", "b" * 22 + "aa")
    (measure,) = reviews(run_path, 0, 40)
    assert measure.direction(THRESHOLDS) == "better"
    verdict = decide(Facts([DISPLACED], evidence=[(measure, "better")], n_pairs=50))
    assert verdict.harm == "benign"


def test_an_earlier_checkpoint_that_people_preferred_is_named(run_path: Path) -> None:
    """Step 20 wins 21 of 24 against step 40: 3/24 - 1/2; one pair of looks, so the interval is the plain one."""
    say(run_path, "20", "40", "a" * 21 + "bbb")
    (measure,) = newest_preferences(load_run(run_path))
    wilson = proportion(3, 24)
    assert (measure.change.value, *(measure.change.bounds or ())) == pytest.approx(
        (3 / 24 - 0.5, wilson.low - 0.5, wilson.high - 0.5)
    )
    assert best_and_last(load_run(run_path)) == [measure]
    assert measure.direction(THRESHOLDS) == "worse"


def test_without_verdicts_there_is_no_preference(run_path: Path) -> None:
    assert newest_preferences(load_run(run_path)) == best_and_last(load_run(run_path)) == reviews(run_path, 0, 40) == []
