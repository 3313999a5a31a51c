"""The unigram baseline: what a supervised loss is when nothing but the frequency of each token is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ROWS = 100_000
"""Rows that are counted, evenly over the set: more do not move an entropy."""
_CHUNK = 2000

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Unigram:
    """How often each token is trained on.

    Attributes:
        counts: (vocabulary,).
    """

    counts: IntArray

    @property
    def total(self) -> int:
        """Trained tokens."""
        return int(self.counts.sum())

    @property
    def entropy(self) -> float:
        """Of the empirical distribution, nats per token: the cross-entropy of its own tokens under it; NaN for none."""
        if not self.total:
            return math.nan
        shares = self.counts[self.counts > 0] / self.total
        return float(-(shares * np.log(shares)).sum()) + 0.0

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(vocabulary,) by Witten and Bell (1991): of N tokens of T kinds, a kind seen c times has c / (N + T), and
        those never seen share T / (N + T). Where every kind was seen, c / N; NaN for no tokens."""
        seen = self.counts > 0
        total, kinds = self.total, int(seen.sum())
        if not total:
            return np.full(len(self.counts), math.nan)
        unseen = len(self.counts) - kinds
        if not unseen:
            return self.counts / total
        return np.where(seen, self.counts, kinds / unseen) / (total + kinds)

    def cross_entropy(self, other: Unigram) -> float:
        """Mean -log p of another set's tokens under this one's `probabilities`, nats per token; NaN if one is empty."""
        if not self.total or not other.total:
            return math.nan
        at = other.counts > 0
        return float(-(other.counts[at] * np.log(self.probabilities[at])).sum() / other.total)

    def unseen(self, other: Unigram) -> float:
        """Share of another set's tokens that this one never has; NaN if it is empty."""
        return float(other.counts[self.counts == 0].sum() / other.total) if other.total else math.nan


def trained_unigram(dataset: Any, vocabulary: int) -> Unigram | None:
    """Of a tokenised data set's `labels`: those that the loss counts, so without a sequence's first token, which
    nothing predicts. None for a stream, and for a set without labels.

    Args:
        vocabulary: ids are below it.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset) or "labels" not in dataset.column_names:
        return None
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(ROWS, len(dataset)), dtype=np.int64))
    counts = np.zeros(vocabulary, dtype=np.int64)
    table = dataset.select_columns(["labels"]).with_format("arrow")
    for first in range(0, len(rows), _CHUNK):
        column = table[rows[first : first + _CHUNK]].column("labels").combine_chunks()
        labels = column.flatten().to_numpy(zero_copy_only=False)
        predicted = np.ones(len(labels), dtype=bool)
        offsets = column.offsets.to_numpy() - column.offsets[0].as_py()
        predicted[offsets[:-1][np.diff(offsets) > 0]] = False
        counts += np.bincount(labels[predicted & (labels >= 0)], minlength=vocabulary)[:vocabulary]
    return Unigram(counts)
