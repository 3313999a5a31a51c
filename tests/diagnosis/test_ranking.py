"""Ranking by length-normalised log-probs, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import build_run, pair_rows

from dpo_diag import RunWriter
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.decompose.ranking import gnmt_score, length_normalised


def test_scores_by_hand() -> None:
    """-8 over 4 tokens: the sum -8, the mean -2, -8 / 4^0.5 = -4; GNMT's with alpha 1: -8 / (9 / 6) = -5.333. No token,
    no score."""
    assert length_normalised([-8.0], [4], 0).tolist() == [-8.0]
    assert length_normalised([-8.0], [4], 1).tolist() == [-2.0]
    assert length_normalised([-8.0], [4], 0.5).tolist() == pytest.approx([-4.0])
    assert gnmt_score([-8.0], [4], 1.0).tolist() == pytest.approx([-16 / 3])
    assert np.isnan(length_normalised([-8.0, -8.0], [0, 0], 0)).all() and np.isnan(gnmt_score([0.0], [0])).all()


def test_which_normalisation_decides(tmp_path: Path) -> None:
    """p0: -8 over 8 against -6 over 3: right by the mean (-1, -2), by 0.6 (-2.30, -3.10) and by GNMT (-5.03, -5.05),
    wrong by the sum. p1: -4 over 2 against -9 over 9: right by the sum and by GNMT (-3.65, -5.41), wrong by the mean
    (-2, -1) and by 0.6 (-2.64, -2.41). p2, of equal lengths, is right by all; at step 0 it is a tie: wrong."""
    writer = RunWriter(tmp_path / "run")
    for step, own in ((0, -5.5), (9, -5.0)):
        rows = pair_rows(step, [-8.0, -4.0, own], [-6.0, -9.0, -5.5])
        writer.write("pairs", rows.assign(n_tokens=[8, 2, 5, 3, 9, 5]), split="eval")
    writer.finish("finished")
    found = explain(tmp_path / "run")["ranking"]
    assert found["n_pairs"] == 3
    assert found["to"] == pytest.approx({"0": 2 / 3, "0.6": 2 / 3, "1": 2 / 3, "gnmt": 1.0})
    assert found["from"] == pytest.approx({"0": 1 / 3, "0.6": 1 / 3, "1": 1 / 3, "gnmt": 2 / 3})


def test_one_side_ranks_nothing(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-8.0], None), 9: ([-7.0], None)}, reference=None)
    assert explain(run)["ranking"] == {"not_applicable": "only one side is recorded"}
