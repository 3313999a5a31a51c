"""What a sweeper that searches is told of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.diagnosis.objective import Objective, directions, objectives, values
from dpo_diag.errors import DiagError
from dpo_diag.records import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """At steps 0 and 9: a score of two splits, the loss and the cross-entropy of chosen on the evaluation set."""
    writer = RunWriter(tmp_path / "run")
    writer.write("history", [
        {"step": step, "split": split, "name": name, "value": value, "weight": 4}
        for split, name, first, last in (
            ("held_out", "score/accuracy", 0.25, 0.75), ("other", "score/accuracy", 0.5, 0.25),
            ("eval", "loss", 0.7, 0.4), ("eval", "ce/chosen", 1.0, 1.5), ("train", "ce/rejected", 1.0, 2.0),
        )
        for step, value in ((0, first), (9, last))
    ])  # fmt: skip
    writer.update(splits={"eval": {"role": "held_out"}, "train": {"role": "train"}})
    writer.finish()
    return load_run(tmp_path / "run")


def test_a_value_its_split_and_its_change(run: Run) -> None:
    found = objectives(["score/accuracy", "score/accuracy@other", "change:ce/chosen", "loss"], prompts="file")
    assert values(found, run) == (0.75, 0.25, 0.5, 0.4)
    assert values(found[:1], run) == 0.75
    assert [o.direction for o in found] == ["maximize", "maximize", "minimize", "minimize"]


def test_a_run_without_the_value_says_so(run: Run) -> None:
    """Training batches are no evaluation, and a split may not be there."""
    for text in ("ce/rejected", "rewards/accuracies", "loss@nowhere"):
        with pytest.raises(DiagError, match="the objective has no value"):
            values(objectives(text), run)


def test_a_change_counts_from_the_start(tmp_path: Path) -> None:
    """Evaluations at steps 4 and 9 alone, which other learning rates reach from elsewhere: no change since the start
    is known. Pairs at step 4 with the reference's rows know the start of the cross-entropy: 3 / 2 nats a token there,
    5 / 2 at step 4."""
    writer = RunWriter(tmp_path / "run")
    writer.write("history", [
        {"step": step, "split": split, "name": name, "value": value, "weight": 4}
        for step, value in ((4, 0.5), (9, 0.75))
        for split, name in (("held_out", "score/accuracy"), ("eval", "loss"))
    ])  # fmt: skip
    pair = {"split": "eval", "pair_id": "a", "n_tokens": 2}
    writer.write("pairs", [
        pair | {"step": step, "role": role, "side": side, "sum_logp": value}
        for step, role, value in ((0, "ref", -3.0), (4, "policy", -5.0))
        for side in ("chosen", "rejected")
    ])  # fmt: skip
    writer.update(splits={"eval": {"role": "held_out"}})
    writer.finish()
    run = load_run(tmp_path / "run")
    assert values(objectives(["score/accuracy", "loss"], prompts="file"), run) == (0.75, 0.75)
    for text in ("change:score/accuracy", "change:loss"):
        with pytest.raises(DiagError, match=r"a value before the first step.*eval_on_start"):
            values(objectives(text, prompts="file"), run)
    assert values(objectives("change:ce/chosen"), run) == 1.0


def test_a_wrong_name_or_direction_is_told_before_anything_runs() -> None:
    for text, said in (
        ("rewards/acuracies", "did you mean rewards/accuracies"),
        ("ce/chosn", "did you mean ce/chosen"),
        ("x", "lists"),
    ):
        with pytest.raises(DiagError, match=said):
            objectives(text)
    with pytest.raises(DiagError, match="prompts that are answered and judged"):
        objectives("score/accuracy", prompts="none")
    with pytest.raises(DiagError, match="neither more nor less is better"):
        objectives("logps/chosen")
    with pytest.raises(DiagError, match="expected maximize or minimize"):
        objectives("loss", "down")
    with pytest.raises(DiagError, match="one for each of 2"):
        objectives(["loss", "ce/chosen"], ["minimize"])
    assert objectives(None) == []


def test_what_the_sweeper_gets() -> None:
    assert directions("logps/chosen", "maximize", "task", "sql") == "maximize"
    assert directions(["score/execution_accuracy", "loss"], None, "task", "sql") == ["maximize", "minimize"]
    assert objectives("change:loss@eval") == [Objective("loss", "eval", True, "minimize")]
    with pytest.raises(DiagError, match="looks for a number"):
        directions(None, None, "task", "sql")
