"""What the history holds at its evaluations: the short table after a training, the split that is shown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from builders import build_run

from dpo_diag.diagnosis.logged import before_after, before_after_text, measured_split
from dpo_diag.records import RunWriter, load_run


def test_first_and_last_values_and_intervals_for_scores(tmp_path: Path) -> None:
    """8 of 10 right: Wilson 95 % is 0.490 to 0.943."""
    writer = RunWriter(tmp_path / "r")
    values = [(0, "eval", "loss", 0.6931, 4), (10, "eval", "loss", 0.5, 4), (20, "eval", "loss", 0.25, 4)]
    values += [(0, "held_out", "score/accuracy", 0.9, 10), (20, "held_out", "score/accuracy", 0.8, 10)]
    values += [(20, "train", "loss", 9.0, 1)]
    writer.write("history", [dict(zip(("step", "split", "name", "value", "weight"), v, strict=True)) for v in values])
    table = before_after(load_run(tmp_path / "r"))
    assert table[["label", "from_step", "before", "to_step", "after"]].to_numpy().tolist() == [
        ["loss", 0, 0.6931, 20, 0.25],
        ["accuracy, held out", 0, 0.9, 20, 0.8],
    ]
    assert table["low"].iloc[1] == pytest.approx(0.4902, abs=1e-4)
    assert table["high"].iloc[1] == pytest.approx(0.9433, abs=1e-4)
    lines = before_after_text(table).splitlines()
    assert lines[0].split() == ["step", "0", "step", "20"]
    assert lines[1].split() == ["loss", "0.6931", "0.2500"]
    assert lines[2].endswith("n = 10, 95 % interval 0.490 to 0.943")


def test_a_fixed_set_is_known_by_its_role_whatever_its_name(tmp_path: Path) -> None:
    """A training batch's split holds other pairs at each step: it has no row."""
    writer = RunWriter(tmp_path / "r")
    rows = [(0, "validation", 0.7), (9, "validation", 0.6), (0, "train", 0.7), (9, "train", 0.1)]
    writer.write("history", [{"step": t, "split": s, "name": "loss", "value": v, "weight": 4} for t, s, v in rows])
    table = before_after(load_run(tmp_path / "r"))
    assert table[["split", "before", "after"]].to_numpy().tolist() == [["validation", 0.7, 0.6]]


def test_checkpoints_scored_beside_their_reference_are_held_against_it(tmp_path: Path) -> None:
    """10 tokens an answer. Reference: chosen -10, so cross-entropy 1 and perplexity e; checkpoint 80: -12, e^1.2. The
    task score has no value under the reference: its own first one stands, and the row says so."""
    run = build_run(tmp_path / "r", {40: ([-11.0], [-14.0]), 80: ([-12.0], [-22.0])}, reference=([-10.0], [-10.0]),
                    history=[{"step": s, "split": "eval", "name": n, "value": v, "weight": 10.0}
                             for s, n, v in ((40, "ppl_token/chosen", 3.0042), (80, "ppl_token/chosen", 3.3201),
                                             (40, "score/accuracy", 0.9), (80, "score/accuracy", 0.8))])  # fmt: skip
    table = before_after(run)
    assert table[["metric", "from_step", "to_step", "after"]].to_numpy().tolist() == [
        ["ppl_token/chosen", "ref", 80, 3.3201], ["score/accuracy", 40, 80, 0.8],
    ]  # fmt: skip
    assert table["before"].tolist() == [pytest.approx(math.e), 0.9]
    lines = before_after_text(table).splitlines()
    assert lines[0].split() == ["the", "reference", "step", "80"]
    assert lines[2].endswith("0.490 to 0.943, from step 40")


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r")
    table = before_after(load_run(tmp_path / "r"))
    assert table.empty
    assert "no evaluation was recorded" in before_after_text(table)


def test_the_shown_split_is_the_wanted_one_else_the_best_measured(tmp_path: Path) -> None:
    """A split that holds scores only is no choice; fixed sets come before training batches."""
    writer = RunWriter(tmp_path / "r")
    named = [("train", "loss"), ("held_out", "score/accuracy"), ("validation", "loss")]
    writer.write("history", [{"step": 1, "split": s, "name": n, "value": 0.5, "weight": 4} for s, n in named])
    run = load_run(tmp_path / "r")
    assert [measured_split(run), measured_split(run, "train"), measured_split(run, "absent")] == [
        "validation", "train", "validation",
    ]  # fmt: skip
