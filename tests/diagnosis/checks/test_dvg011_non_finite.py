"""DVG011: NaN or infinity, told apart from what was not measured."""

from __future__ import annotations

import math

import pandas as pd

from dpo_diag.records import RunWriter, load_run


def test_nan_behind_a_finite_loss(means, finding):
    rewards = [0.1, 0.2, math.nan, 0.3, 0.4]
    found = finding(means({"loss": [0.69, 0.68, 0.67, 0.66, 0.65], "rewards/chosen": rewards}), "DVG011")
    assert found["outcome"] == "speaks" and found["severity"] == "warning"
    assert found["evidence"]["steps"] == [15] and found["evidence"]["steps_with_finite_loss"] == [15]
    assert found["evidence"]["metrics"] == {"train:rewards/chosen": 1}


def test_nan_at_the_end_is_an_error(means, finding):
    found = finding(means({"loss": [0.69, 0.68, math.inf]}), "DVG011")
    assert found["outcome"] == "speaks" and found["severity"] == "error"


def test_a_null_is_not_a_nan(tmp_path, finding):
    writer = RunWriter(tmp_path / "r")
    values = pd.Series([0.69, None, 0.68], dtype=object)
    writer.write("history", pd.DataFrame({"step": [1, 2, 3], "split": "train", "name": "loss", "value": values}))
    assert finding(load_run(tmp_path / "r"), "DVG011")["outcome"] == "silent"


def test_a_sum_that_was_not_recorded_is_not_broken(tmp_path, finding):
    """An importer that knows lengths but not log-probs writes a null sum_logp: it is missing, not NaN."""
    writer = RunWriter(tmp_path / "r")
    rows = {"step": [0, 0], "split": "eval", "role": "policy", "pair_id": "p", "side": ["chosen", "rejected"]}
    writer.write("pairs", pd.DataFrame({**rows, "n_tokens": 5}))
    assert finding(load_run(tmp_path / "r"), "DVG011")["outcome"] == "not_applicable"
    sums = pd.Series([-3.0, None], dtype=object)
    writer.write("pairs", pd.DataFrame({**rows, "n_tokens": 5, "sum_logp": sums}))
    found = finding(load_run(tmp_path / "r"), "DVG011")
    assert found["outcome"] == "silent" and found["evidence"]["sums"] == 1


def test_an_infinite_sum_names_its_pair(pairs, finding):
    run = pairs({0: ([-10.0] * 5, -10.0), 5: ([-math.inf, -9, -9, -9, -9], -12.0)})
    found = finding(run, "DVG011")
    assert found["outcome"] == "speaks" and found["evidence"]["pairs"] == ["pair000"]
