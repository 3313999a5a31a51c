"""Micro-batches of one split, collected on each rank and exchanged once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from dpo_diag.training.batch import Batch, BoolArray


@dataclass
class Gathered:
    """One rank's view after the exchange.

    Attributes:
        rows: every row of every rank, padded duplicates removed (None where there were none at all).
        residual: largest loss residual of any micro-batch of any rank; NaN if none could be formed.
        added: whether something that is no mean over rows (the MoE auxiliary loss) was added to the loss.
        own_first: (own rows,) true where this rank's row is the first of its pair_id: the one that is recorded.
        n_duplicates: identical pairs in the set beyond their first; they count in the metrics, and are recorded once.
    """

    rows: Batch | None
    residual: float
    added: bool
    own_first: BoolArray
    n_duplicates: int


@dataclass
class Accumulator:
    """Collects micro-batches of one split on one rank."""

    batches: list[Batch] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Take one micro-batch; its per-token values are not kept."""
        self.batches.append(batch.without_tokens())

    @property
    def rows(self) -> Batch | None:
        """Every row in one batch."""
        return Batch.concat(self.batches) if self.batches else None

    @property
    def residual(self) -> float:
        """The largest residual of a micro-batch; NaN if none could be formed."""
        return _largest([b.residual for b in self.batches])

    @property
    def added(self) -> bool:
        """Whether something that is no mean over rows was added to a micro-batch's loss."""
        return any(b.added for b in self.batches)

    def gather(self, world_size: int = 1, rank: int = 0, *, padded: bool = False) -> Gathered:
        """Exchange with the other ranks; every rank must call it.

        Args:
            padded: a sampler may have repeated examples to fill the last batch (evaluation): count each example of
                the set once, known by its row in the data set, or by its pair_id where rows are not known.
        """
        own = self.rows
        everyone = [(own, self.residual, self.added)]
        if world_size > 1:
            everyone = gather_object(everyone)
        parts = [batch for batch, *_ in everyone if batch is not None]
        residual, added = _largest([r for _, r, _ in everyone]), any(a for *_, a in everyone)
        if not parts:
            return Gathered(None, residual, added, np.zeros(0, dtype=bool), 0)
        rows = Batch.concat(parts)
        first = _first_of(rows.pair_ids)
        start = sum(len(batch) for batch, *_ in everyone[:rank] if batch is not None)
        own_first = first[start : start + (0 if own is None else len(own))]
        if padded and world_size > 1:
            keys = [row if row >= 0 else p for row, p in zip(rows.rows.tolist(), rows.pair_ids, strict=True)]
            rows = rows.take(_first_of(keys))
        return Gathered(rows, residual, added, own_first, len(rows) - int(first.sum()))


def _largest(values: Sequence[float]) -> float:
    return max((v for v in values if not math.isnan(v)), default=math.nan)


def _first_of(keys: Sequence[Any]) -> BoolArray:
    """(keys,) true at the first of each."""
    seen: set[Any] = set()
    first = np.zeros(len(keys), dtype=bool)
    for i, key in enumerate(keys):
        first[i] = key not in seen
        seen.add(key)
    return first
