"""Which rows are compared, and what is counted instead of dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builders import build_run, pair_rows

from dpo_diag import RunWriter, load_run
from dpo_diag.diagnosis.aligned import align, side_arrays
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, finite_at_both, pair_loss
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.records import Run

STEPS = {0: ([-5.0, -7.0], [-6.0, -8.0]), 10: ([-4.0, -7.5], [-9.0, -9.0]), 20: ([-3.0, -8.0], [-12.0, -9.5])}


def test_defaults_are_the_reference_and_the_last_step(tmp_path: Path) -> None:
    found = align(build_run(tmp_path / "run", STEPS))
    assert (found.split, found.from_step, found.to_step, found.steps) == ("eval", REFERENCE, 20, [0, 10, 20])
    assert found.pairs["a0"].tolist() == [0.0, 0.0]
    assert found.pairs["a1"].tolist() == [2.0, -1.0]
    assert found.pairs["b1"].tolist() == [-6.0, -1.5]
    assert found.coverage["aligned"] == 2 and found.has_reference
    assert found.path() == [(0, 0), (10, 10), (20, 20)]  # the policy at step 0 is the reference


def test_checkpoints_without_a_step_0_are_held_against_the_reference(tmp_path: Path) -> None:
    """Checkpoints 40 and 80 alone: their own start would show the second half of the way only."""
    run = build_run(tmp_path / "run", {40: STEPS[10], 80: STEPS[20]}, reference=STEPS[0])
    found = align(run)
    assert (found.from_step, found.to_step) == (REFERENCE, 80)
    assert found.change("chosen").tolist() == [2.0, -1.0]
    assert found.path() == [(0, REFERENCE), (40, 40), (80, 80)]
    own = found.from_own_start()
    assert own is not None and own.from_step == 40
    assert own.change("chosen").tolist() == [1.0, -0.5]
    assert own.against_reference().change("chosen").tolist() == [2.0, -1.0]
    assert align(run, 40).from_step == 40


def test_without_a_reference_the_first_step_is_the_start(tmp_path: Path) -> None:
    assert align(build_run(tmp_path / "run", STEPS, reference=None)).from_step == 0


def test_a_wrong_reference_is_no_start(tmp_path: Path) -> None:
    """At step 0 the policy lies 5 nats above the reference on both sides: the start is its own, and that is said."""
    reference = ([-10.0, -12.0], [-11.0, -13.0])
    run = build_run(tmp_path / "run", STEPS, reference=reference)
    found = align(run)
    assert found.from_step == 0 and found.rows.reference_gap == 5.0
    assert found.change("chosen").tolist() == [2.0, -1.0]
    assert "started 5 nats per response away from its reference" in found.notes[-1]
    assert found.against_reference().change("chosen").tolist() == [7.0, 4.0]
    assert align(PairRows(run, tolerance=6.0)).from_step == REFERENCE


def test_a_scored_checkpoint_whose_step_nothing_names_shows_no_start(tmp_path: Path) -> None:
    """It stands at step 0, 5 nats from the reference: what training did, not where it began."""
    writer = RunWriter(tmp_path / "run", kind="scored")
    writer.write("pairs", pd.concat([pair_rows(0, *STEPS[0]), pair_rows(0, [-10.0, -12.0], [-1.0, -3.0], role="ref")]))
    writer.finish()
    found = align(load_run(tmp_path / "run"))
    assert (found.from_step, found.to_step, found.rows.reference_gap) == (REFERENCE, 0, None)
    assert found.from_own_start() is None


def test_a_reference_of_some_pairs_only_is_no_start(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    for step in (10, 20):
        writer.write("pairs", pair_rows(step, *STEPS[step]))
    writer.write("pairs", pair_rows(10, [-5.0], [-6.0], role="ref"), split="ref")
    writer.finish()
    found = align(load_run(tmp_path / "run"))
    assert found.from_step == 10 and len(found.pairs) == 2
    assert "the reference was measured on 1 of 2 pairs only" in found.notes[-1]


def test_what_the_reference_lacks_comes_from_the_step_that_is_the_reference(tmp_path: Path) -> None:
    """Reference log-probs that were computed beforehand have no entropy; the policy at step 0 had one."""
    writer = RunWriter(tmp_path / "run")
    writer.write("pairs", pair_rows(0, *STEPS[0], entropy_sum=3.0))
    writer.write("pairs", pair_rows(0, *STEPS[0], role="ref"), split="ref")
    writer.write("pairs", pair_rows(20, *STEPS[20], entropy_sum=1.0))
    writer.finish()
    pairs = align(load_run(tmp_path / "run")).pairs
    assert pairs["chosen_entropy_sum_0"].tolist() == [3.0, 3.0]
    assert pairs["chosen_entropy_sum_1"].tolist() == [1.0, 1.0]


def test_reference_as_the_first_step(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", STEPS, reference=([-6.0, -6.0], [-6.0, -6.0]))
    found = align(run, REFERENCE, 10)
    assert found.pairs[["a0", "b0"]].to_numpy().tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert found.pairs["a1"].tolist() == [2.0, -1.5]
    assert found.pairs["chosen_sum_logp_0"].tolist() == [-6.0, -6.0]


def test_a_set_measured_once_is_held_against_the_reference(tmp_path: Path) -> None:
    assert align(build_run(tmp_path / "run", {30: STEPS[0]})).from_step == REFERENCE


def test_training_batches_never_come_before_an_evaluation_set(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    for step in (0, 5, 10, 15):
        writer.write("pairs", pair_rows(step, [-1.0], [-2.0], split="train"), split="train")
    for step in (0, 15):
        writer.write("pairs", pair_rows(step, [-1.0], [-2.0], split="eval_x"), split="eval_x")
    writer.finish()
    assert align(load_run(tmp_path / "run")).split == "eval_x"


def test_pairs_at_one_step_only_are_counted(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.write("pairs", pair_rows(0, [-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], ids=["a", "b", "c"]))
    writer.write("pairs", pair_rows(9, [-1.0, -2.0], [-1.0, -2.0], ids=["b", "d"]))
    writer.finish()
    found = align(load_run(tmp_path / "run"))
    assert found.pairs["pair_id"].tolist() == ["b"]
    assert (found.coverage["only_from"], found.coverage["only_to"]) == (2, 1)
    assert "3 pairs are recorded at one of the two steps only" in found.notes[0]
    assert not found.has_reference


def test_training_batches_alone_are_held_against_the_reference(tmp_path: Path) -> None:
    """Each step has its own pair; the newest ones are compared with the reference, each at its own step."""
    writer = RunWriter(tmp_path / "run")
    for step in range(1, 4):
        for role, sums in (("policy", -2.0 * step), ("ref", -2.0)):
            rows = pair_rows(step, [sums], [sums - 1], split="train", role=role, ids=[f"p{step}"])
            writer.write("pairs", rows, split=f"train.{role}")
    writer.finish()
    found = align(load_run(tmp_path / "run"))
    assert found.from_step == REFERENCE
    assert found.pairs["a1"].tolist() == [0.0, -2.0, -4.0]
    assert "training batches hold other pairs at every step" in found.notes[-1]


def test_rows_written_twice_count_once(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    for rank_split in ("eval", "eval.again"):
        writer.write("pairs", pair_rows(0, [-1.0], [-2.0]), split=rank_split)
        writer.write("pairs", pair_rows(9, [-1.5], [-2.5]), split=rank_split)
    writer.finish()
    found = align(load_run(tmp_path / "run"))
    assert len(found.pairs) == 1 and found.coverage["duplicate_rows"] == 4


def test_a_named_base_step_serves_as_reference(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", kind="scored")
    for step, sums in ((0, -5.0), (10, -4.0)):
        writer.write("pairs", pair_rows(step, [sums], [sums - 1.0]))
    writer.update(reference={"step": 0})
    writer.finish()
    assert align(load_run(tmp_path / "run")).pairs["a1"].tolist() == [1.0]


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
        align(run, **arguments)  # type: ignore[arg-type]
    assert caught.value.usage


def test_no_pairs_at_all(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run").finish()
    with pytest.raises(DiagError, match="no pair records"):
        align(load_run(tmp_path / "run"))


def test_bytes_stand_in_for_unknown_token_counts(tmp_path: Path) -> None:
    found = align(build_run(tmp_path / "run", STEPS, n=None, n_bytes=40))
    unit, note = found.unit_and_note
    assert unit == "byte" and note is not None and "per UTF-8 byte" in note
    assert side_arrays(found.pairs, "chosen", unit).n_from.tolist() == [40.0, 40.0]


def test_nothing_counted_is_said(tmp_path: Path) -> None:
    found = align(build_run(tmp_path / "run", STEPS, n=None))
    unit, why = found.unit_and_note
    assert unit is None and why is not None and "neither token counts nor bytes" in why


def test_what_cannot_be_measured_is_counted_by_reason(tmp_path: Path) -> None:
    sums = [-1.0, -np.inf, np.nan, -1.0]
    run = build_run(tmp_path / "run", {0: ([-1.0] * 4, [-1.0] * 4), 9: (sums, [-1.0] * 4)}, n=[5, 5, 5, 0])
    arrays = side_arrays(align(run).pairs, "chosen", "token")
    assert arrays.keep.tolist() == [True, False, False, False]
    assert {k: v["pair_ids"] for k, v in arrays.excluded.items()} == {
        "infinite": ["p1"],
        "nan": ["p2"],
        "empty": ["p3"],
    }


def test_the_pairs_are_read_once_whatever_is_asked_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at all rows of all splits; the reference of step 20 needs no second."""
    run = build_run(tmp_path / "run", STEPS)
    reads: list[object] = []
    read = Run.arrow

    def counting(self: Run, table: str, columns: object = None, *rest: Any, **more: Any) -> Any:
        reads.append(table)
        return read(self, table, columns, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "arrow", counting)
    aligned = align(run)
    assert [aligned.at(s) is not None for s in aligned.steps] == [True] * 3
    assert aligned.against_reference().pairs["a1"].tolist() == [2.0, -1.0]
    assert reads == ["pairs"]


def test_every_step_over_the_same_pairs_or_none(tmp_path: Path) -> None:
    """Step 10 lacks p1: nothing there compares with the two pairs of steps 0 and 20."""
    run = build_run(tmp_path / "run", {0: ([-1.0, -2.0], [-1.0, -2.0]), 10: ([-3.0], [-3.0]),
                                       20: ([-1.5, -2.5], [-4.0, -4.0])})  # fmt: skip
    aligned = align(run)
    assert aligned.at(10) is None
    last = aligned.at(20)
    assert last is not None and last["a"].tolist() == [-0.5, -0.5] and last["b"].tolist() == [-3.0, -2.0]


def test_the_reference_stands_as_a_step_of_the_split(tmp_path: Path) -> None:
    """The reference's sums, its log-ratios 0, the text's counts kept, what it did not measure unknown."""
    run = build_run(tmp_path / "run", STEPS, reference=([-6.0, -6.5], [-6.0, -6.5]), n_bytes=40, top1=0.5)
    frame = PairRows(run).at("eval", REFERENCE)
    assert frame["chosen_sum_logp"].tolist() == [-6.0, -6.5] and frame["a"].tolist() == [0.0, 0.0]
    assert frame["chosen_n_bytes"].tolist() == [40.0, 40.0] and frame["chosen_top1"].tolist() == [0.5, 0.5]
    assert frame["chosen_weight"].isna().all()


def test_pairs_that_are_finite_at_both_steps(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-1.0, -2.0, np.nan], [-1.0] * 3), 9: ([-1.0, -np.inf, -3.0], [-1.0] * 3)})
    rows = PairRows(run)
    before, after = finite_at_both(rows.at("eval", 0), rows.at("eval", 9))
    assert list(before.index) == list(after.index) == ["p0"]


def test_the_loss_of_each_pair_at_one_step_and_between_two(tmp_path: Path) -> None:
    """beta .1, a 2 and -1, b -6 and -1.5 at step 20: margins .8 and .05, losses log(1 + exp(-margin)). With chosen of
    step 0 (a 0, 0) the margins are .6 and .15."""
    aligned = align(build_run(tmp_path / "run", STEPS))
    at_end = [np.log1p(np.exp(-0.8)), np.log1p(np.exp(-0.05))]
    assert pair_loss(LossSpec(beta=0.1), aligned.after) == pytest.approx(at_end)
    assert pair_loss(LossSpec(beta=0.1), aligned.pairs, 1, 1) == pytest.approx(at_end)
    mixed = [np.log1p(np.exp(-0.6)), np.log1p(np.exp(-0.15))]
    assert pair_loss(LossSpec(beta=0.1), aligned.pairs, 0, 1) == pytest.approx(mixed)


def test_a_loss_that_needs_what_is_not_recorded_says_what(tmp_path: Path) -> None:
    aligned = align(build_run(tmp_path / "run", STEPS, n=None))
    with pytest.raises(DiagError, match="chosen_n_tokens is not recorded"):
        pair_loss(LossSpec(types=("ipo",)), aligned.after)
