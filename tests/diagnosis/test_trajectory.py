"""The run, evaluation by evaluation: sums telescope, turning points need a rise beyond their noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import build_run

from dpo_diag import Run
from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.decompose.trajectory import Trajectory, TurningPoint, follow, turning_points
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.losses import LossSpec

SPEC = LossSpec(beta=0.1)


def path_of(run: Run) -> Trajectory:
    return follow(align(run), SPEC)


def valley(path: Path, noise: float, n: int = 60) -> Run:
    """Chosen improves until step 20, then falls back by .1 nats a token on average, `noise` apart over pairs; rejected
    falls all the way."""
    rng = np.random.default_rng(1)
    start = -rng.uniform(9, 11, n)
    end = start + 2.0 - (1.0 + noise * rng.standard_normal(n))
    return build_run(path, {0: (start, start), 10: (start + 1, start - 5), 20: (start + 2, start - 10),
                            30: (end, start - 30)})  # fmt: skip


def turns_of(path: Trajectory) -> list[TurningPoint]:
    return turning_points(path, PairIntervals.of(path.aligned.rows))


def test_steps_add_up_to_the_run(tmp_path: Path) -> None:
    found = path_of(valley(tmp_path / "run", 0.1))
    along = found.summary["loss_along_the_run"]
    frame = found.steps
    assert along["delta"] == pytest.approx(frame["loss"].iloc[-1] - frame["loss"].iloc[0], rel=1e-12)
    assert abs(along["residual"]) <= 1e-9 * abs(along["delta"])
    assert frame["loss_chosen_part"].iloc[0] == 0.0
    assert frame["ppl_seq_geomean_chosen"].iloc[1] == pytest.approx(
        frame["ppl_seq_geomean_chosen"].iloc[0] * np.exp(-0.1)
    )
    assert frame["both_fell"].iloc[1] == 0.0


def test_a_clear_turn_is_found(tmp_path: Path) -> None:
    turns = {t.quantity: t for t in turns_of(path_of(valley(tmp_path / "run", 0.1)))}
    assert set(turns) == {"ppl_token", "ppl_seq_mean", "ppl_seq_geomean"}
    assert turns["ppl_seq_geomean"].step == 20
    assert turns["ppl_seq_geomean"].worse_by.value == pytest.approx(0.1, abs=0.01)


def test_a_turn_inside_its_noise_is_none(tmp_path: Path) -> None:
    """2 nats a token apart: the mean's rise of .1 cannot be told from 0; the dispersion that it makes is a rise."""
    turns = {t.quantity for t in turns_of(path_of(valley(tmp_path / "run", 20.0)))}
    assert turns == {"ppl_seq_mean"}


def test_steps_that_lack_pairs_are_left_out_and_listed(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-5.0, -5.0], [-5.0, -5.0]), 10: ([-4.0], [-6.0]),
                                       20: ([-3.0, -3.0], [-9.0, -9.0])})  # fmt: skip
    found = path_of(run)
    assert found.summary["steps"] == [0, 20] and found.summary["steps_left_out"] == [10]


def test_an_infinite_pair_on_the_way_stops_the_sum_not_the_levels(tmp_path: Path) -> None:
    sums = [-5.0] * 9
    run = build_run(tmp_path / "run", {0: (sums, sums), 10: ([-np.inf, *sums[1:]], sums), 20: (sums, [-9.0] * 9)})
    found = path_of(run)
    assert "not_applicable" in found.summary["loss_along_the_run"]
    assert found.steps["ppl_seq_geomean_chosen"].tolist() == pytest.approx([np.exp(0.5)] * 3)


def test_without_counts_the_mean_log_prob_turns(tmp_path: Path) -> None:
    """Sums -10 -> -8 (step 20) -> -9: best at step 20, worse by 1 nat at the end."""
    run = build_run(tmp_path / "run", {s: ([v] * 9, [-10.0 - s] * 9) for s, v in ((0, -10.0), (20, -8.0), (30, -9.0))},
                    n=None)  # fmt: skip
    (turn,) = turns_of(follow(align(run), SPEC))
    assert (turn.quantity, turn.step, turn.start, turn.end, turn.worse_by.value) == (
        "sum_logp",
        20,
        -8.0,
        -9.0,
        1.0,
    )
