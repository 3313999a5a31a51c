"""What a split is to the training: said by the run, else read from its name at one place."""

from __future__ import annotations

import pytest

from dpo_diag.records.splits import preferred, role_from_name


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train", "train"), ("train/rank1", "train"), ("train_batches", "train"),
        ("eval_train_probe", "train_probe"), ("eval_seen", "train_probe"), ("like_training", "train_probe"),
        ("eval", "held_out"), ("eval_held_out", "held_out"), ("validation", "held_out"), ("test", "held_out"),
        ("held_out", "held_out"), ("eval_unseen", "held_out"), ("eval_constrained", "held_out"),
        ("eval_likelihood", "held_out"), ("paraphrased", "other"), ("safety", "other"),
    ],
)  # fmt: skip
def test_role_from_a_name(name: str, role: str) -> None:
    assert role_from_name(name) == role


def test_preferred_order() -> None:
    """eval, other held-out sets by name, probes of the training set, sets of unknown origin, training batches."""
    names = ["train", "safety", "eval_train_probe", "eval_b", "eval_a", "eval"]
    assert preferred(names, role_from_name) == ["eval", "eval_a", "eval_b", "eval_train_probe", "safety", "train"]
