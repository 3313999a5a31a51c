"""Similarity of pairs: CHES over explicit masks, partial rank correlations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import build_run, build_token_run

from dpo_diag.diagnosis.aligned import align
from dpo_diag.diagnosis.decompose.similarity import (
    edit_distances,
    pair_features,
    partial_spearman,
    rank_correlations,
)


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
