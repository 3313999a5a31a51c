"""Which rows are compared, and what is counted instead of dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import build_run, pair_rows

from dpo_diag import RunWriter, load_run
from dpo_diag.diagnosis.aligned import REFERENCE, select, split_order
from dpo_diag.diagnosis.decompose.measure import choose_unit, side_arrays
from dpo_diag.errors import DiagError

STEPS = {0: ([-5.0, -7.0], [-6.0, -8.0]), 10: ([-4.0, -7.5], [-9.0, -9.0]), 20: ([-3.0, -8.0], [-12.0, -9.5])}


def test_fixed_sets_come_first() -> None:
    assert split_order(["train", "zeta", "eval_b", "validation", "eval", "eval_a"]) == [
        "eval", "eval_a", "eval_b", "validation", "zeta", "train",
    ]  # fmt: skip


def test_defaults_are_first_and_last_step(tmp_path: Path) -> None:
    found = select(build_run(tmp_path / "run", STEPS))
    assert (found.split, found.from_step, found.to_step, found.steps) == ("eval", 0, 20, [0, 10, 20])
    assert found.pairs["a0"].tolist() == [0.0, 0.0]
    assert found.pairs["a1"].tolist() == [2.0, -1.0]
    assert found.pairs["b1"].tolist() == [-6.0, -1.5]
    assert found.coverage["aligned"] == 2 and found.has_reference


def test_reference_as_the_first_step(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", STEPS, reference=([-6.0, -6.0], [-6.0, -6.0]))
    found = select(run, REFERENCE, 10)
    assert found.pairs[["a0", "b0"]].to_numpy().tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert found.pairs["a1"].tolist() == [2.0, -1.5]
    assert found.pairs["chosen_sum_logp_0"].tolist() == [-6.0, -6.0]


def test_a_set_measured_once_is_held_against_the_reference(tmp_path: Path) -> None:
    assert select(build_run(tmp_path / "run", {30: STEPS[0]})).from_step == REFERENCE


def test_training_batches_never_come_before_an_evaluation_set(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    for step in (0, 5, 10, 15):
        writer.write("pairs", pair_rows(step, [-1.0], [-2.0], split="train"), split="train")
    for step in (0, 15):
        writer.write("pairs", pair_rows(step, [-1.0], [-2.0], split="eval_x"), split="eval_x")
    writer.finish()
    assert select(load_run(tmp_path / "run")).split == "eval_x"


def test_pairs_at_one_step_only_are_counted(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.write("pairs", pair_rows(0, [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], ids=["a", "b", "c"]))
    writer.write("pairs", pair_rows(9, [-1.0, -2.0], [-1.0, -2.0], ids=["b", "d"]))
    writer.finish()
    found = select(load_run(tmp_path / "run"))
    assert found.pairs["pair_id"].tolist() == ["b"]
    assert (found.coverage["only_from"], found.coverage["only_to"]) == (2, 1)
    assert "3 pairs stand at one of the two steps only" in found.notes[0]
    assert not found.has_reference


def test_training_batches_alone_are_held_against_the_reference(tmp_path: Path) -> None:
    """Each step has its own pair; the newest ones are compared with the reference, each at its own step."""
    writer = RunWriter(tmp_path / "run")
    for step in range(1, 4):
        for role, sums in (("policy", -2.0 * step), ("ref", -2.0)):
            rows = pair_rows(step, [sums], [sums - 1], split="train", role=role, ids=[f"p{step}"])
            writer.write("pairs", rows, split=f"train.{role}")
    writer.finish()
    found = select(load_run(tmp_path / "run"))
    assert found.from_step == REFERENCE
    assert found.pairs["a1"].tolist() == [0.0, -2.0, -4.0]
    assert "training batches hold other pairs at every step" in found.notes[-1]


def test_rows_written_twice_count_once(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    for rank_split in ("eval", "eval.again"):
        writer.write("pairs", pair_rows(0, [-1.0], [-2.0]), split=rank_split)
        writer.write("pairs", pair_rows(9, [-1.5], [-2.5]), split=rank_split)
    writer.finish()
    found = select(load_run(tmp_path / "run"))
    assert len(found.pairs) == 1 and found.coverage["duplicate_rows"] == 4


def test_a_named_base_step_serves_as_reference(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", kind="scored")
    for step, sums in ((0, -5.0), (10, -4.0)):
        writer.write("pairs", pair_rows(step, [sums], [sums - 1.0]))
    writer.update(reference={"step": 0})
    writer.finish()
    assert select(load_run(tmp_path / "run")).pairs["a1"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"split": "evl"}, "no such split"),
        ({"from_step": 5}, "no pair records at this step"),
        ({"from_step": "soon"}, "not a step"),
        ({"from_step": 20, "to_step": 10}, "--from must lie before --to"),
    ],
)
def test_what_is_not_there_is_one_clear_line(tmp_path: Path, arguments: dict[str, object], text: str) -> None:
    run = build_run(tmp_path / "run", STEPS)
    with pytest.raises(DiagError, match=text) as caught:
        select(run, **arguments)  # type: ignore[arg-type]
    assert caught.value.usage


def test_no_pairs_at_all(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run").finish()
    with pytest.raises(DiagError, match="no pair records"):
        select(load_run(tmp_path / "run"))


def test_bytes_stand_in_for_unknown_token_counts(tmp_path: Path) -> None:
    found = select(build_run(tmp_path / "run", STEPS, n=None, n_bytes=40))
    unit, note = choose_unit(found.pairs, found.sides)
    assert unit == "byte" and note is not None and "per UTF-8 byte" in note
    assert side_arrays(found, "chosen", unit).n_from.tolist() == [40.0, 40.0]


def test_nothing_counted_is_said(tmp_path: Path) -> None:
    found = select(build_run(tmp_path / "run", STEPS, n=None))
    unit, why = choose_unit(found.pairs, found.sides)
    assert unit is None and why is not None and "neither token counts nor bytes" in why


def test_what_cannot_be_measured_is_counted_by_reason(tmp_path: Path) -> None:
    sums = [-1.0, -np.inf, np.nan, -1.0]
    run = build_run(tmp_path / "run", {0: ([-1.0] * 4, [-1.0] * 4), 9: (sums, [-1.0] * 4)}, n=[5, 5, 5, 0])
    arrays = side_arrays(select(run), "chosen", "token")
    assert arrays.keep.tolist() == [True, False, False, False]
    assert {k: v["pair_ids"] for k, v in arrays.excluded.items()} == {
        "infinite": ["p1"],
        "nan": ["p2"],
        "empty": ["p3"],
    }
