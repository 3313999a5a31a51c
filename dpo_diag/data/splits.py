"""Which pairs are trained on, which are held out, and which of them are taken first: by hashes, never by chance."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from dpo_diag.data.pairs import Row, split_key
from dpo_diag.errors import DiagError


def rank(rows: Sequence[Row], seed: int = 0) -> list[int]:
    """Places of the rows by the hash of seed and pair_id: the order in which a part of them is taken.

    It depends neither on the order of the rows nor on how many there are beside them, and a larger part only adds rows.
    """
    return sorted(range(len(rows)), key=lambda i: hashlib.sha256(f"{seed}:{rows[i]['pair_id']}".encode()).digest())


def split_pairs(rows: Sequence[Row], held_out: float | int = 0.1, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """(train, held out), both in the source's order; no prompt is on both sides.

    A prompt's place on [0, 1) is a hash of its text and the seed. `held_out` below 1 is a share: the prompts below it
    are held out, whatever other rows there are, so that adding data moves no pair from one side to the other. From 1 on
    it is a number of pairs: whole prompts in the order of their places, up to that number. At least one prompt
    is on each side.

    Raises:
        DiagError: a held-out share or number that leaves nothing to train on, or fewer than two prompts.
    """
    if held_out < 0 or held_out >= max(len(rows), 1):
        raise DiagError(
            "nothing would be left to train on",
            where="data.eval_share",
            got=held_out,
            expected=f"a share in [0, 1) or a number below the {len(rows)} rows",
        )
    if held_out == 0:
        return list(rows), []
    keys = [split_key(row) for row in rows]
    sizes = Counter(keys)
    if len(sizes) < 2:
        raise DiagError(
            "all rows share one prompt: held-out ones would leak",
            where="data.eval_share",
            hint="set data.eval_share=0",
        )
    place = {key: int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:16], 16) / 2**64 for key in sizes}
    ordered = sorted(sizes, key=lambda key: (place[key], key))
    if held_out < 1:
        chosen = [key for key in ordered if place[key] < held_out]
    else:
        chosen, total = [], 0
        for key in ordered:
            if total + sizes[key] <= held_out:
                chosen.append(key)
                total += sizes[key]
    aside = set((chosen or ordered[:1])[: len(ordered) - 1])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in aside]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in aside]


def without_prompts_of(rows: Sequence[Row], held_out: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(rows whose prompt is not in `held_out`, the others): for a held-out set that comes from a file of its own."""
    there = {split_key(row) for row in held_out}
    flags = [split_key(row) in there for row in rows]
    kept = [row for row, leaks in zip(rows, flags, strict=True) if not leaks]
    return kept, [row for row, leaks in zip(rows, flags, strict=True) if leaks]
