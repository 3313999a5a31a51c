"""Reliability and ECE by hand, and of what runs record: a supervised one, a scored one's columns, and none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.calibration import calibration, expected_calibration_error, reliability
from dpo_diag.records import RunWriter, load_run


def test_a_curve_and_its_error_by_hand() -> None:
    """Five bins. 0.9 and 1.0 in the last: confidence 0.95, accuracy 1/2; 0.2 closes the first bin and 0 lies in it:
    confidence 0.1, accuracy 1/2; 0.5 in the third: accuracy 1. ECE = (2 x 0.45 + 2 x 0.4 + 1 x 0.5) / 5 = 0.44."""
    curve = reliability([0.9, 1.0, 0.2, 0.0, 0.5], [True, False, True, False, True], bins=5)
    assert curve["high"].tolist() == pytest.approx([0.2, 0.6, 1.0])
    assert curve["n"].tolist() == [2, 1, 2]
    assert curve["confidence"].tolist() == pytest.approx([0.1, 0.5, 0.95])
    assert curve["accuracy"].tolist() == [0.5, 1.0, 0.5]
    assert expected_calibration_error(curve) == pytest.approx(0.44)


def test_a_model_that_says_what_it_is_has_no_error() -> None:
    """10,000 tokens that are right with the probability that was said: within 2 points; said twice as sure, it is not.
    Nothing has no error at all."""
    draw = np.random.default_rng(0)
    p = draw.uniform(0.05, 0.5, 10_000)
    hit = draw.uniform(size=len(p)) < p
    assert expected_calibration_error(reliability(p, hit)) < 0.02
    assert expected_calibration_error(reliability(2 * p, hit)) == pytest.approx(p.mean(), abs=0.02)
    assert math.isnan(expected_calibration_error(reliability([], [])))


def supervised(folder: Path, *, greedy: bool = True) -> Path:
    """Two evaluations of one response of four tokens; the second one's first choices are right three times of four,
    said with 1/2 each."""
    writer = RunWriter(folder, kind="trained")
    writer.update(method="sft")
    for step, hits in ((0, [False] * 4), (5, [True, True, True, False])):
        tokens = pd.DataFrame({
            "step": step, "split": "eval", "role": "policy", "pair_id": "a", "side": "response", "position": range(4),
            "token_id": range(4), "logp": [-1.0, -1.0, -1.0, -3.0], "entropy": [1.0] * 4, "is_top1": hits,
        })  # fmt: skip
        if greedy:
            tokens["greedy_logp"] = math.log(0.5)
        writer.write("tokens", tokens, split="eval")
        writer.write("history", [{"step": step, "split": "eval", "name": "loss", "value": 2.0 - step / 10}])
    writer.finish("finished")
    return folder


def test_a_supervised_run_explains_its_calibration(tmp_path: Path) -> None:
    document = explain(supervised(tmp_path / "run"))["calibration"]
    assert document["from"]["ece"] == pytest.approx(0.5) and document["from"]["accuracy"] == 0.0
    last = document["to"]
    assert (last["side"], last["n_tokens"]) == ("response", 4)
    assert last["ece"] == pytest.approx(0.25)
    assert (last["confidence"], last["accuracy"]) == (pytest.approx(0.5), 0.75)
    assert (last["ce"], last["entropy"]) == (1.5, 1.0)
    assert [row["n"] for row in last["curve"]] == [4]
    found = calibration(load_run(supervised(tmp_path / "bare", greedy=False)), "eval", 5)
    assert "probes.extra" in found["not_applicable"]
