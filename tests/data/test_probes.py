"""The fixed diagnostic sets do not depend on order or company."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.data.probes import pick, probe_sets

ROWS = [{"pair_id": f"{i:016x}", "prompt": str(i)} for i in range(50)]


@given(n=st.integers(0, 60), seed=st.integers(0, 5), shuffle=st.randoms())
def test_the_same_rows_are_picked_in_any_order(n: int, seed: int, shuffle: random.Random) -> None:
    """min(n, 50) of them, in the order given; a larger n only adds."""
    other = list(ROWS)
    shuffle.shuffle(other)
    picked = {row["pair_id"] for row in pick(ROWS, n, seed)}
    assert len(picked) == min(n, 50)
    assert picked == {row["pair_id"] for row in pick(other, n, seed)}
    assert picked <= {row["pair_id"] for row in pick(ROWS, n + 1, seed)}
    assert pick(other, n, seed) == [row for row in other if row["pair_id"] in picked]


def test_seeds_differ_and_none_means_all() -> None:
    assert pick(ROWS, None) == ROWS
    assert pick(ROWS, 10, 0) != pick(ROWS, 10, 1)


def test_sets_carry_their_split_and_empty_ones_are_left_out() -> None:
    sets = probe_sets(ROWS[:40], ROWS[40:], n_held_out=4, n_train=3)
    assert {name: len(rows) for name, rows in sets.items()} == {"eval": 4, "eval_train_probe": 3}
    assert list(probe_sets(ROWS, [], n_train=0)) == []
