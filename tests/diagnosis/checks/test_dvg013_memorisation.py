"""DVG013: training-like questions gain, others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.records import RunWriter, load_run


def test_scores_part(means, finding):
    """+0.25 on training-like, -0.05 on paraphrased, 500 questions each: a gap of 0.30."""
    run = means(held={"score/accuracy@train_like": [0.6, 0.85], "score/accuracy@paraphrased": [0.6, 0.55]}, weight=500)
    found = finding(run, "DVG013")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["gap_of_changes"]["value"] == pytest.approx(0.30)
    assert found["evidence"]["gap_of_changes"]["low"] > 0.2


def test_scores_move_alike(means, finding):
    run = means(held={"score/accuracy@train_like": [0.6, 0.7], "score/accuracy@paraphrased": [0.6, 0.69]}, weight=500)
    assert finding(run, "DVG013")["outcome"] == "silent"


def test_forty_questions_cannot_tell(means, finding):
    run = means(held={"score/accuracy@train_like": [0.6, 0.7], "score/accuracy@held_out": [0.6, 0.6]}, weight=40)
    found = finding(run, "DVG013")
    assert found["outcome"] == "not_applicable" and found["reason"].startswith("cannot tell")


def test_tags_of_checked_answers(tmp_path: Path, finding):
    writer = RunWriter(tmp_path / "r")
    rows = [
        {"step": step, "model": "policy", "prompt_id": f"{tag}{i}", "sample": 0, "text": "x", "tags": [tag],
         "correct": float(i < right)}
        for step, seen, other in ((0, 20, 20), (9, 38, 12)) for tag, right in (("like_training", seen),
                                                                              ("paraphrased", other))
        for i in range(40)
    ]  # fmt: skip
    writer.write("outputs", rows)
    found = finding(load_run(tmp_path / "r"), "DVG013")
    assert found["outcome"] == "speaks" and found["evidence"]["training_like"]["change"]["value"] == pytest.approx(0.45)


def test_one_kind_only(means, finding):
    run = means(held={"score/accuracy@held_out": [0.6, 0.7]}, weight=400)
    assert finding(run, "DVG013")["outcome"] == "not_applicable"
