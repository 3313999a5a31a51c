"""A reduced benchmark of truthfulness: some planted causes and healthy runs, simulated; some adversaries; the study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.diagnosis.adversaries import ADVERSARIES
from benchmarks.diagnosis.adversaries import judge as judge_adversary
from benchmarks.diagnosis.plans import CAUSES, HEALTHY
from benchmarks.diagnosis.score import simulated, summarise, table
from benchmarks.diagnosis.simulate import Plan
from benchmarks.study.__main__ import report, study

SOME_HEALTHY = ("full records", "training means only", "ten rows", "rewards without logps", "falls fast",
                "four epochs, stairs")  # fmt: skip
SOME_CAUSES = ("displacement", "dead", "aggregator", "length", "spikes", "displacement + NaN")


def test_clear_causes_are_found_and_healthy_runs_stay_silent() -> None:
    plans: list[Plan] = [HEALTHY[name].but(name=name, seed=7) for name in SOME_HEALTHY]
    plans += [CAUSES[name][0].but(name=name, seed=7) for name in SOME_CAUSES]
    results = simulated(plans)
    summary = summarise(results)
    assert summary.recall == 1.0, table(results)
    assert summary.alarmed == 0, [(r.name, r.extra) for r in results if r.strength == "healthy"]
    assert summary.healthy == len(SOME_HEALTHY) and summary.clear == 7


@pytest.mark.parametrize(
    "name",
    [
        "heavy-tailed batches, displacement", "two collapsing pairs", "length explains the margin",
        "a restart in the same file", "columns missing", "chosen is not recorded", "collapse, and chosen falls",
        "NaN stands for missing", "sums over micro-batches", "one row", "no reference in the loss",
    ],
)  # fmt: skip
def test_the_headline_of_an_adversary(name: str) -> None:
    assert judge_adversary(ADVERSARIES[name], seed=7) == ""


def test_the_study_counts_what_was_said(tmp_path: Path) -> None:
    """One log whose loss falls with chosen (reward -0.1 to -2.4), one that cannot be read, one that is not at hand."""
    rows = [
        {"step": 10 * i, "loss": 0.69 - 0.02 * i, "rewards/chosen": -0.1 * i, "rewards/rejected": -0.2 * i,
         "rewards/margins": 0.1 * i, "rewards/accuracies": 0.9}
        for i in range(1, 25)
    ]  # fmt: skip
    (tmp_path / "fell.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prose.log").write_text("nothing to see\n")
    sources = tmp_path / "sources.yaml"
    sources.write_text(
        "- {file: fell.jsonl, source: a}\n- {file: prose.log, source: b}\n- {file: absent.log, source: c}\n"
    )
    found, absent = study([tmp_path], sources)
    assert [(r.source, r.label, r.loss_fell) for r in found] == [
        ("a", "likelihood_displacement", True),
        ("b", "", False),
    ]
    assert absent == 1 and found[1].refused == "no row could be read"
    text = report(found, absent)
    assert "| of these, chosen became less likely (DVG001) | 1 |" in text and "1 of the list were not at hand" in text
