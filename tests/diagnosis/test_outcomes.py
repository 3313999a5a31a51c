"""Evidence that is not likelihood, and what may be concluded from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import build_run

from dpo_diag.diagnosis import evidence as outcomes
from dpo_diag.diagnosis.evidence import judge, mcnemar
from dpo_diag.records.metrics import newcombe_interval

STEPS = {0: ([-5.0], [-6.0]), 10: ([-6.0], [-9.0])}


def answers(step: int, correct: list[float | None], model: str = "policy", **columns: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "model": model, "prompt_id": f"q{i}", "sample": 0, "text": "SELECT 1", "finish_reason": "stop",
         "correct": value, "decoding_hash": "h", **columns}
        for i, value in enumerate(correct)
    ]  # fmt: skip


def test_newcombe_by_hand() -> None:
    """Newcombe 1998, example (a): 56/70 against 48/80: difference .2, interval .0524 to .3339."""
    low, high = newcombe_interval(48 / 80, 80, 56 / 70, 70)
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_mcnemar_by_hand() -> None:
    """10 lost, 2 won of 100: exact p = 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12 = 158 / 4096 = .038574; change -8/100.
    Interval: (-8 +- 1.96 sqrt(13 - 64/102)) / 102, i.e. -.0784 +- .0676."""
    found = mcnemar(10, 2, 100)
    assert found["delta"] == -0.08
    assert found["p"] == pytest.approx(158 / 4096)
    assert found["interval"] == [pytest.approx(-0.14602, abs=1e-4), pytest.approx(-0.01085, abs=1e-4)]


def test_mcnemar_without_a_change() -> None:
    found = mcnemar(0, 0, 50)
    assert found["p"] == 1.0 and found["delta"] == 0.0
    low, high = found["interval"]
    assert low < 0 < high


def test_scores_carry_their_n_and_interval(tmp_path: Path) -> None:
    history = [
        {"step": 0, "split": "held_out", "name": "score/accuracy", "value": 0.7, "weight": 300.0},
        {"step": 10, "split": "held_out", "name": "score/accuracy", "value": 0.4, "weight": 300.0},
    ]
    run = build_run(tmp_path / "run", STEPS, history=history)
    (entry,) = outcomes.evidence(run, 0, 10)
    assert (entry["what"], entry["split"], entry["n"], entry["delta"]) == (
        "accuracy",
        "held_out",
        300,
        pytest.approx(-0.3),
    )
    assert judge(entry, 0.05, 0.02) == "worse"


def test_a_score_without_n_gives_no_verdict(tmp_path: Path) -> None:
    history = [{"step": s, "split": "x", "name": "score/accuracy", "value": v} for s, v in ((0, 0.9), (10, 0.1))]
    (entry,) = outcomes.evidence(build_run(tmp_path / "run", STEPS, history=history), 0, 10)
    assert entry["interval"] is None and judge(entry, 0.05, 0.02) == "unclear"


def test_answers_are_paired_by_prompt(tmp_path: Path) -> None:
    before, after = [1.0] * 30 + [0.0] * 10, [1.0] * 15 + [0.0] * 15 + [1.0] * 2 + [0.0] * 8
    run = build_run(tmp_path / "run", STEPS, outputs=answers(0, before) + answers(10, after))
    entry = next(e for e in outcomes.evidence(run, 0, 10) if e["kind"] == "correct")
    assert (entry["lost"], entry["won"], entry["n"], entry["delta"]) == (15, 2, 40, -13 / 40)
    assert judge(entry, 0.05, 0.02) == "worse"


def test_answers_under_other_decoding_are_not_compared(tmp_path: Path) -> None:
    rows = answers(0, [1.0] * 9) + [{**r, "decoding_hash": "other"} for r in answers(10, [0.0] * 9)]
    assert outcomes.evidence(build_run(tmp_path / "run", STEPS, outputs=rows), 0, 10) == []


def test_answers_that_no_longer_end_are_evidence(tmp_path: Path) -> None:
    """No checker: the share cut off by the length limit goes from 0 to 30 of 40."""
    after = answers(10, [None] * 40)
    for row in after[:30]:
        row["finish_reason"] = "length"
    run = build_run(tmp_path / "run", STEPS, outputs=answers(0, [None] * 40) + after)
    found = {e["kind"]: e for e in outcomes.evidence(run, 0, 10)}
    assert set(found) == {"unfinished", "empty"}
    assert found["unfinished"]["delta"] == 0.75 and judge(found["unfinished"], 0.05, 0.02) == "worse"
    assert judge(found["empty"], 0.05, 0.02) == "no_worse"


def test_the_reference_answers_stand_in_for_a_missing_start(tmp_path: Path) -> None:
    rows = answers(0, [1.0] * 20, model="ref") + answers(10, [0.0] * 20)
    found = outcomes.evidence(build_run(tmp_path / "run", STEPS, outputs=rows), "ref", 10)
    assert next(e for e in found if e["kind"] == "correct")["delta"] == -1.0


def test_graded_answers_use_paired_means(tmp_path: Path) -> None:
    grades = np.linspace(0.5, 0.9, 12)
    rows = answers(0, list(grades)) + answers(10, list(grades - 0.2))
    entry = next(e for e in outcomes.evidence(build_run(tmp_path / "run", STEPS, outputs=rows), 0, 10)
                 if e["kind"] == "correct")  # fmt: skip
    assert entry["delta"] == pytest.approx(-0.2) and entry["n"] == 12
    assert judge(entry, 0.05, 0.02) == "worse"


@pytest.mark.parametrize(
    ("delta", "interval", "better", "expected"),
    [
        (-0.10, [-0.15, -0.05], "higher", "worse"),
        (-0.10, [-0.25, 0.05], "higher", "unclear"),
        (-0.01, [-0.03, 0.01], "higher", "no_worse"),
        (0.10, [0.05, 0.15], "higher", "better"),
        (0.10, [0.05, 0.15], "lower", "worse"),
        (-0.01, [-0.015, -0.005], "higher", "no_worse"),
        (-0.5, None, "higher", "unclear"),
    ],
)
def test_judgement(delta: float, interval: list[float] | None, better: str, expected: str) -> None:
    """A significant fall of one point is smaller than `least_harm` .02 and inside `benign_margin` .05: no worse."""
    assert judge({"delta": delta, "interval": interval, "better": better}, 0.05, 0.02) == expected


def test_a_verdict_needs_the_exact_test_too() -> None:
    """Interval and test disagree (p = 0.071 beside -0.180 to -0.001, as a real small run gave): it is not told."""
    entry = {"better": "higher", "delta": -0.092, "interval": [-0.180, -0.001], "p": 0.071}
    assert judge(entry, 0.05, 0.02) == "unclear"
    assert judge(entry | {"p": 0.049}, 0.05, 0.02) == "worse"
    assert judge({**entry, "delta": 0.092, "interval": [0.001, 0.180]}, 0.05, 0.02) == "no_worse"
