"""A random stream that is the same on every machine, Python version and PYTHONHASHSEED.

`random.Random` promises stability only for `random()`; golden question lists need it for every draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1


class Stream:
    """SplitMix64 (Steele, Lea and Flood 2014), seeded from the SHA-256 of its keys.

    Args:
        keys: any strings and integers; equal keys give equal streams, unequal ones unrelated streams.
    """

    def __init__(self, *keys: str | int) -> None:
        digest = hashlib.sha256("\x1f".join(f"{type(k).__name__}:{k}" for k in keys).encode()).digest()
        self._state = int.from_bytes(digest[:8], "big")

    def _next(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """An integer in [0, n). The bias is under n / 2**64. Raises ValueError for n < 1."""
        if n < 1:
            raise ValueError(f"below() needs n >= 1, got {n}")
        return (self._next() * n) >> 64

    def pick(self, items: Sequence[T]) -> T:
        """One item. Raises ValueError when there is none."""
        return items[self.below(len(items))]

    def chance(self, per_cent: int) -> bool:
        """True in `per_cent` of 100 draws."""
        return self.below(100) < per_cent

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list in random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        """One item, with probability proportional to its integer weight."""
        mark = self.below(sum(weights))
        for item, weight in zip(items, weights, strict=True):
            if mark < weight:
                return item
            mark -= weight
        raise AssertionError("unreachable: mark is below the sum of the weights")
