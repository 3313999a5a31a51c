"""Where the probability went: readings, lost mass, the pure functions on two models' log-probs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from builders import build_run, build_token_run

from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.decompose.destination import (
    destination,
    lost_mass,
    read,
)
from dpo_diag.diagnosis.pair_intervals import PairIntervals


@pytest.mark.parametrize(
    ("target", "greedy", "entropy", "expected"),
    [
        (-1, 1, -1, "own_answer"),
        (-1, 0, -1, "own_answer"),
        (-1, -1, 1, "spread"),
        (-1, None, 1, "spread"),
        (-1, -1, -1, "mixed"),
        (-1, 0, 0, "mixed"),
        (1, 1, -1, "sharper"),
        (0, 0, 0, "unchanged"),
        (1, 0, 0, "mixed"),
    ],
)
def test_readings(target: int, greedy: int | None, entropy: int, expected: str) -> None:
    assert read(target, greedy, entropy) == expected


def test_numbers_are_per_token(tmp_path: Path) -> None:
    """10 tokens each: greedy sums -4 -> -2 are -.4 -> -.2 a token, entropy .5 -> .3, gap of greedy over target .6 ->
    .8 + ... = 1.0 - .2."""
    run = build_run(tmp_path / "run", {0: ([-10.0] * 9, [-10.0] * 9), 9: ([-12.0] * 9, [-30.0] * 9)})
    pairs = align(run).pairs
    for side in ("chosen", "rejected"):
        for when, greedy, entropy in ((0, -4.0, 5.0), (1, -2.0, 3.0)):
            pairs[f"{side}_greedy_logp_sum_{when}"] = greedy
            pairs[f"{side}_entropy_sum_{when}"] = entropy
    aligned = align(run)
    aligned.pairs[pairs.columns] = pairs
    chosen = destination(aligned, PairIntervals.of(aligned.rows))["chosen"]
    assert (chosen["greedy_logp"]["from"], chosen["greedy_logp"]["to"]) == (-0.4, -0.2)
    assert chosen["entropy"]["delta"] == pytest.approx(-0.2)
    assert (chosen["gap"]["from"], chosen["gap"]["to"]) == (pytest.approx(0.6), pytest.approx(1.0))
    assert chosen["reading"] == "own_answer" and "-1.00 → -1.20" in chosen["text"]


def test_not_recorded_is_not_applicable(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-10.0], [-10.0]), 9: ([-12.0], [-30.0])})
    aligned = align(run)
    assert "not_applicable" in destination(aligned, PairIntervals.of(aligned.rows))["chosen"]


def test_lost_mass_by_hand(tmp_path: Path) -> None:
    """Chosen probabilities .5 .25 .5 -> .25 .25 1: lost .25, gained .5. The first token was first choice and is no
    longer: all of the lost mass is displaced."""
    half, quarter = math.log(0.5), math.log(0.25)
    logps: dict[int, Any] = {
        0: {"q": ([half, quarter, half], [half] * 3)},
        9: {"q": ([quarter, quarter, 0.0], [half] * 3)},
    }
    run = build_token_run(tmp_path / "run", {"q": ([4, 5, 6], [4, 5, 6])}, logps, end=None)
    aligned = align(run)
    change = aligned.tokens
    assert change is not None
    assert "is_top1" in lost_mass(aligned, change)["not_applicable"]
    run = build_token_run(tmp_path / "with", {"q": ([4, 5, 6], [4, 5, 6])}, {0: logps[0]}, end=None,
                          extra={"is_top1": [True, False, True]})  # fmt: skip
    other = build_token_run(tmp_path / "later", {"q": ([4, 5, 6], [4, 5, 6])}, {9: logps[9]}, end=None,
                            extra={"is_top1": [False, False, True]})  # fmt: skip
    for path in other.files("tokens"):
        path.rename(run.path / "tokens" / path.name)
    for path in other.files("pairs"):
        path.rename(run.path / "pairs" / path.name)
    aligned = align(run, 0, 9)
    change = aligned.tokens
    assert change is not None
    found = lost_mass(aligned, change)["chosen"]
    assert (found["lost"], found["gained"]) == (pytest.approx(0.25, abs=1e-7), pytest.approx(0.5, abs=1e-7))
    assert (found["displaced"], found["still_first"], found["never_first"]) == (1.0, 0.0, 0.0)
