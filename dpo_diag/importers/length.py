"""How long a training is, from what its log states: totals, epochs, the final summary, examples and batch sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from dpo_diag.importers.numbers import number

DECIMALS = 3
"""To which Transformers rounds the steps per second of a final summary."""


class Range(NamedTuple):
    """Where a whole number lies, both ends included."""

    low: int
    high: int


@dataclass(frozen=True)
class Length:
    """What a source states about its training's length; all may be unknown.

    Attributes:
        total: optimizer steps of the whole training.
        epochs: its epochs; where it ended, the epoch that it ended at.
        per_epoch: steps of an epoch, from the numbers of examples and of pairs in a batch.
        logging_steps: steps between two rows.
        ended: whether the rows reach to the end of the training.
    """

    total: Range | None = None
    epochs: float | None = None
    per_epoch: float | None = None
    logging_steps: int | None = None
    ended: bool = False

    @property
    def exact_total(self) -> int | None:
        return self.total.low if self.total is not None and self.total.low == self.total.high else None


def total_of_summary(summary: Mapping[str, Any]) -> Range | None:
    """Steps of a training by its final summary, runtime x steps per second, within the rounding of both.

    >>> total_of_summary({"train_runtime": 94.87, "train_steps_per_second": 1.054})
    Range(low=100, high=100)
    >>> total_of_summary({"train_runtime": "1.488e+04", "train_steps_per_second": "0.084"})
    Range(low=1243, high=1257)
    """
    seconds, speed = (_rounded(summary.get(key)) for key in ("train_runtime", "train_steps_per_second"))
    if seconds is None or speed is None:
        return None
    low = math.ceil((seconds[0] - seconds[1]) * (speed[0] - speed[1]))
    high = math.floor((seconds[0] + seconds[1]) * (speed[0] + speed[1]))
    middle = round(seconds[0] * speed[0])
    return Range(max(1, min(low, middle)), max(high, middle)) if middle >= 1 else None


def _rounded(value: Any) -> tuple[float, float] | None:
    """(a positive number, half of its last digit)."""
    known = number(value)
    if known is None or not 0 < known < math.inf:
        return None
    try:
        exponent = Decimal(str(value).strip()).as_tuple().exponent
    except InvalidOperation:
        return None
    # A float has lost its trailing zeros; a text keeps the digits that it was printed with.
    last = min(int(exponent), -DECIMALS) if not isinstance(value, str) else int(exponent)
    return known, 0.5 * 10.0**last


def interval_of_total(total: Range, n: int) -> tuple[int, int] | None:
    """(steps between two rows, 1 if step 1 has a row of its own) of n training rows over all steps; None if unclear.

    Every k-th step has a row, so that n = floor(total / k), and step 1 may have one besides.

    >>> [interval_of_total(Range(*t), n) for t, n in (((100, 100), 10), ((100, 100), 11), ((283, 283), 28))]
    [(10, 0), (10, 1), (10, 0)]
    >>> interval_of_total(Range(1243, 1257), 125)
    (10, 0)
    >>> interval_of_total(Range(100, 100), 3)
    """
    exact, possible = [], []
    for has_first in (0, 1):
        rows = n - has_first
        if rows < 1:
            continue
        low, high = total.low // (rows + 1) + 1, total.high // rows
        for k in range(max(1, low), min(high, low + 3) + 1):
            possible.append((k, has_first))
            if total.low <= k * rows <= total.high:
                exact.append((k, has_first))
    found = exact if len(exact) == 1 else possible
    return found[0] if len(found) == 1 else None
