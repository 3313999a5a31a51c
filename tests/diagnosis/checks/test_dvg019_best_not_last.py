"""DVG019: an earlier checkpoint was better."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.records import RunWriter, load_run


def test_rise_and_fall(means, finding):
    """FACTS: .523 -> .573 -> .485 along one run; 1500 questions."""
    found = finding(means(held={"score/accuracy@held_out": [0.523, 0.573, 0.485]}, weight=1500), "DVG019")
    assert found["outcome"] == "speaks"
    score = found["evidence"]["scores"][0]
    assert score["best_step"] == 5 and score["change"]["value"] == pytest.approx(-0.088)
    assert score["change"]["high"] < -0.04


def test_the_last_is_the_best(means, finding):
    run = means(held={"score/accuracy@held_out": [0.5, 0.55, 0.6]}, weight=900)
    assert finding(run, "DVG019")["outcome"] == "silent"


def test_a_change_inside_its_noise(means, finding):
    found = finding(means(held={"score/accuracy@held_out": [0.5, 0.6, 0.55]}, weight=60), "DVG019")
    assert found["outcome"] == "not_applicable" and found["reason"].startswith("cannot tell")


def test_paired_answers_see_more(tmp_path: Path, finding):
    """100 questions, 60, 80, 64 right, the same ones: 16 lost, none won, so the paired interval excludes 0."""
    writer = RunWriter(tmp_path / "r")
    writer.write("outputs", [
        {"step": s, "model": "policy", "prompt_id": f"q{i}", "sample": 0, "text": "x", "correct": float(i < right)}
        for s, right in ((0, 60), (5, 80), (9, 64)) for i in range(100)
    ])  # fmt: skip
    found = finding(load_run(tmp_path / "r"), "DVG019")
    assert found["outcome"] == "speaks" and found["evidence"]["scores"][0]["best_step"] == 5


def test_likelihoods_do_not_rank_checkpoints(means, finding):
    assert finding(means(held={"loss": [0.69, 0.5, 0.6]}), "DVG019")["outcome"] == "not_applicable"
