"""The diagnostic sets: fixed pairs that are measured at every evaluation, the same in every run on the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dpo_diag.data.pairs import Row
from dpo_diag.records.schemas import EVAL_SPLIT

HELD_OUT_SPLIT = EVAL_SPLIT
TRAIN_PROBE_SPLIT = f"{EVAL_SPLIT}_train_probe"
DEFAULT_HELD_OUT = 256


def rank(rows: Sequence[Row], seed: int = 0) -> list[int]:
    """Places of the rows by the hash of seed and pair_id: the order in which `pick` takes them."""
    return sorted(range(len(rows)), key=lambda i: hashlib.sha256(f"{seed}:{rows[i]['pair_id']}".encode()).digest())


def pick(rows: Sequence[Row], n: int | None, seed: int = 0) -> list[Row]:
    """At most `n` rows, in the source's order; all of them for None.

    The rows with the smallest hash of seed and pair_id are taken: the choice depends neither on the order of the rows
    nor on how many there are beside them, and a larger `n` only adds rows.
    """
    if n is None or n >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(rank(rows, seed)[: max(n, 0)])]


def probe_sets(
    train: Sequence[Row],
    held_out: Sequence[Row],
    *,
    n_held_out: int | None = DEFAULT_HELD_OUT,
    n_train: int = 0,
    seed: int = 0,
) -> dict[str, list[Row]]:
    """split name -> rows: "eval", the held-out pairs, and "eval_train_probe", pairs that are trained on.

    Their difference tells memorising from learning. Empty sets are left out.
    """
    sets = {HELD_OUT_SPLIT: pick(held_out, n_held_out, seed), TRAIN_PROBE_SPLIT: pick(train, n_train, seed)}
    return {name: rows for name, rows in sets.items() if rows}
