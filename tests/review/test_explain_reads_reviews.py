"""People's verdicts reach explain: as evidence between two steps, and in DVG018 and DVG019."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_diag.diagnosis.aligned import REFERENCE
from dpo_diag.diagnosis.checks.base import Missing
from dpo_diag.diagnosis.checks.tasks import best_not_last, preferences
from dpo_diag.diagnosis.evidence import evidence, judge
from dpo_diag.diagnosis.verdict import Facts, decide
from dpo_diag.records import load_run
from dpo_diag.records.metrics import wilson_interval
from dpo_diag.review import table
from dpo_diag.review.items import choose_items
from tests.review.builders import judgement

THRESHOLDS = {"confidence_scores": 0.95, "benign_margin": 0.05}


def say(run_path: Path, a: str, b: str, outcomes: str) -> None:
    items = choose_items(load_run(run_path), a=a, b=b, n=len(outcomes))
    for item, outcome in zip(items, outcomes, strict=True):
        table.append(run_path, judgement(item, outcome))


def context(run_path: Path) -> Any:
    return SimpleNamespace(run=load_run(run_path), maybe=lambda thunk: None, score_curves=lambda least=2: [])


def test_a_clear_preference_for_the_reference_is_harm(run_path: Path) -> None:
    """2 of 24 for step 40: a win rate of 1/12, whose Wilson interval lies below 1/2."""
    say(run_path, "ref", "40", "a" * 22 + "bb")
    (entry,) = [e for e in evidence(load_run(run_path), REFERENCE, 40) if e["kind"] == "review"]
    assert (entry["n"], entry["from"], entry["to"]) == (24, 0.5, 2 / 24)
    assert entry["interval"] == pytest.approx([x - 0.5 for x in wilson_interval(2, 24)])
    entry["direction"] = judge(entry, 0.05, 0.02)
    assert entry["direction"] == "worse"
    verdict = decide(Facts(loss=-1, perplexity={"ppl_token": 1}, chosen=-1, evidence=[entry], n_pairs=50))
    assert verdict["harm"] == "harmful"
    assert "people's blind preference for step 40 over ref (step 0)" in verdict["text"]
    # Another pair of steps is not about this change.
    assert [e for e in evidence(load_run(run_path), REFERENCE, 20) if e["kind"] == "review"] == []


def test_a_clear_preference_for_the_last_step_makes_a_fall_benign(run_path: Path) -> None:
    say(run_path, "0", "40", "b" * 22 + "aa")
    (entry,) = [e for e in evidence(load_run(run_path), 0, 40) if e["kind"] == "review"]
    entry["direction"] = judge(entry, 0.05, 0.02)
    assert entry["direction"] == "better"
    verdict = decide(Facts(loss=-1, perplexity={"ppl_token": 1}, chosen=-1, evidence=[entry], n_pairs=50))
    assert verdict["harm"] == "benign"


def test_an_earlier_checkpoint_that_people_preferred_is_named(run_path: Path) -> None:
    """Step 20 wins 21 of 24 against step 40; one pair of looks, so the interval is the plain one."""
    say(run_path, "20", "40", "a" * 21 + "bbb")
    (row,) = preferences(context(run_path), THRESHOLDS)
    low, high = wilson_interval(3, 24)
    assert (row["change"].value, row["change"].low, row["change"].high) == pytest.approx(
        (2 * 3 / 24 - 1, 2 * low - 1, 2 * high - 1)
    )
    outcome = best_not_last(context(run_path), THRESHOLDS)
    assert outcome.outcome == "speaks"
    assert "0.875 at step 20 and is 0.125 at the last" in outcome.reason


def test_without_verdicts_nothing_is_said(run_path: Path) -> None:
    assert preferences(context(run_path), THRESHOLDS) == []
    with pytest.raises(Missing):
        best_not_last(context(run_path), THRESHOLDS)
    assert [e for e in evidence(load_run(run_path), 0, 40) if e["kind"] == "review"] == []
