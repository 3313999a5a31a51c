"""Similarity of pairs: CHES over explicit masks, partial rank correlations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import build_run, build_token_run
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.decompose.similarity import (
    ches,
    edit_distances,
    hidden_sums,
    pair_features,
    partial_spearman,
    rank_correlations,
)


def test_ches_by_hand() -> None:
    """S+ = (1, 2), n 2; S- = (3, 1), n 1: <S+, S-> = 5, |S+|^2 = 5: CHES 0, ln-CHES 5/2 - 5/4 = 1.25."""
    found = ches([[1, 2]], [2], [[3, 1]], [1])
    assert found.iloc[0].tolist() == [0.0, 1.25]


def test_equal_answers_have_ches_zero_and_opposite_ones_a_negative_one() -> None:
    found = ches([[1, 2], [1, 2]], [2, 2], [[1, 2], [-1, -2]], [2, 2])
    assert found["ches"].tolist() == [0.0, -10.0] and found["ln_ches"].tolist() == [0.0, -2.5]


def test_an_empty_answer_has_none() -> None:
    assert ches([[0.0, 0.0]], [0], [[1.0, 1.0]], [1]).isna().all(axis=None)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6))
def test_padding_on_either_side_changes_nothing(left: int, right: int) -> None:
    hidden = np.arange(12, dtype=float).reshape(1, 4, 3)
    padded = np.full((1, left + 4 + right, 3), 1e9)
    padded[:, left : left + 4] = hidden
    mask = np.zeros((1, left + 4 + right), dtype=bool)
    mask[:, left : left + 4] = True
    sums, counts = hidden_sums(padded, mask)
    assert sums.tolist() == [[18.0, 22.0, 26.0]] and counts.tolist() == [4.0]


def test_masks_must_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        hidden_sums(np.zeros((1, 2, 3)), np.zeros((1, 3)))


def test_features_by_hand(tmp_path: Path) -> None:
    """Answers 4 5 2 and 4 6 7 2: one replacement and one insertion over 4 tokens: .5; gap -1."""
    run = build_token_run(tmp_path / "run", {"q": ([4, 5, 2], [4, 6, 7, 2])},
                          {0: {"q": ([-1] * 3, [-2] * 4)}, 9: {"q": ([-1] * 3, [-2] * 4)}})  # fmt: skip
    aligned = align(run)
    change = aligned.tokens
    assert change is not None
    assert edit_distances(change.layout) == {"q": 0.5}
    row = pair_features(aligned).iloc[0]
    assert (row["length_gap"], row["ref_logp_gap"], row["edit_distance"]) == (-1, 5.0, 0.5)


def test_without_tokens_the_distance_is_unknown(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-5.0], [-6.0]), 9: ([-5.0], [-6.0])})
    assert math.isnan(pair_features(align(run))["edit_distance"][0])


def test_length_partialled_out() -> None:
    """Feature and outcome are both the length plus independent noise: correlated, but not given the length."""
    rng = np.random.default_rng(0)
    length = rng.permutation(400).astype(float)
    x, y = length + rng.normal(0, 60, 400), length + rng.normal(0, 60, 400)
    found = {e["feature"]: e for e in rank_correlations(pd.DataFrame({"pair_id": "q", "n_chosen": length, "x": x}), y)}
    assert found["x"]["rho"] > 0.5 and abs(found["x"]["rho_given_length"]) < 0.15
    assert found["n_chosen"]["rho_given_length"] is None


def test_partial_spearman_without_influence_is_spearman() -> None:
    """Ranks x 1 2 3 4 5, y 2 1 4 3 5, control 3 3 3 3 3 (constant): Spearman 1 - 6*4/(5*24) = .8."""
    assert partial_spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [3] * 5)[0] == pytest.approx(0.8)


def test_too_few_or_constant_has_no_correlation() -> None:
    few = rank_correlations(pd.DataFrame({"n_chosen": [1.0] * 9, "x": np.arange(9.0)}), np.arange(9.0))
    assert {e["rho"] for e in few} == {None}
    constant = rank_correlations(pd.DataFrame({"n_chosen": np.arange(20.0), "x": np.ones(20)}), np.arange(20.0))
    assert constant[1]["rho"] is None
    assert math.isnan(partial_spearman([1, 2, 3], [1, 2, 3], [1, 2, 3])[0])
    assert math.isnan(partial_spearman(np.arange(20), np.arange(20), np.arange(20))[0])
