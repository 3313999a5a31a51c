"""The unigram baseline by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from datasets import Dataset

from dpo_diag.data import unigram
from dpo_diag.data.unigram import Unigram, trained_unigram


def of(*counts: int) -> Unigram:
    return Unigram(np.array(counts, dtype=np.int64))


def test_entropy_and_cross_entropy_by_hand() -> None:
    """2, 1, 1 of four tokens: 1.5 bits. Of five kinds two are unseen: N + T = 7, seen kinds have 2/7, 1/7, 1/7, the
    unseen ones 3/7 together. A set with one of the first and one unseen has -(ln 2/7 + ln 3/14) / 2, half is unseen."""
    train = of(2, 1, 1, 0, 0)
    assert train.entropy == pytest.approx(1.5 * math.log(2))
    assert train.probabilities.tolist() == pytest.approx([2 / 7, 1 / 7, 1 / 7, 3 / 14, 3 / 14])
    other = of(1, 0, 0, 0, 1)
    assert train.cross_entropy(other) == pytest.approx(-(math.log(2 / 7) + math.log(3 / 14)) / 2)
    assert train.unseen(other) == 0.5
    assert of(3, 1).cross_entropy(of(3, 1)) == pytest.approx(of(3, 1).entropy)  # all kinds seen: c / N
    assert of(7, 0).entropy == 0.0


def test_nothing_has_no_baseline() -> None:
    assert math.isnan(of(0, 0).entropy)
    assert math.isnan(of(0, 0).cross_entropy(of(1, 0)))
    assert math.isnan(of(1, 0).cross_entropy(of(0, 0))) and math.isnan(of(1, 0).unseen(of(0, 0)))


def test_what_the_loss_counts_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """-100 and each row's first label do not count: nothing predicts it. The same in chunks of one row, and of a
    selection; a stream and a set without labels have none."""
    rows = Dataset.from_dict({"labels": [[3, 3, -100, 4], [-100, 4, 4], [], [5]]})
    counted = trained_unigram(rows, 6)
    assert counted is not None and counted.counts.tolist() == [0, 0, 0, 1, 3, 0]
    monkeypatch.setattr(unigram, "_CHUNK", 1)
    again = trained_unigram(rows, 6)
    assert again is not None and again.counts.tolist() == counted.counts.tolist()
    last = trained_unigram(rows.select([1, 3]), 6)
    assert last is not None and last.counts.tolist() == [0, 0, 0, 0, 2, 0]
    assert trained_unigram(rows.to_iterable_dataset(), 6) is None
    assert trained_unigram(Dataset.from_dict({"text": ["a"]}), 6) is None
