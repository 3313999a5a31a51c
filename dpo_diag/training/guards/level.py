"""The usual level of a series, by median and median absolute deviation, and what stands out of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Spike:
    """A value above the bound.

    Attributes:
        n: values that the level rests on.
        held: values in a row that stood out, this one included.
        is_level: they have stood out for so long that they are the new level.
    """

    value: float
    median: float
    mad: float
    bound: float
    n: int
    held: int
    is_level: bool


class Level:
    """Judges finite values one by one against those before.

    A value that stands out is kept out of the window, so that no spike raises the bar for the next one. `persists` of
    them in a row are no spike but the new level: the window then begins anew with them.

    Args:
        window: values that the level rests on; `least`: fewer judge nothing.
        mads: deviations above the median; least_rise: and at least so much, given the median.
        persists: values in a row.
    """

    def __init__(
        self, *, window: int, least: int, mads: float, least_rise: Callable[[float], float], persists: int
    ) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._held: list[float] = []
        self._least, self._mads, self._least_rise, self._persists = least, mads, least_rise, persists

    def judge(self, value: float) -> Spike | None:
        """Take a value; what is said of it where it stands out."""
        n = len(self._values)
        if n < self._least:
            self._values.append(value)
            return None
        middle = median(self._values)
        mad = median(abs(v - middle) for v in self._values)
        bound = middle + max(self._mads * mad, self._least_rise(middle))
        if value <= bound:
            self._values.append(value)
            self._held.clear()
            return None
        self._held.append(value)
        held = len(self._held)
        if is_level := held >= self._persists:
            self._values.clear()
            self._values.extend(self._held)
            self._held.clear()
        return Spike(value, middle, mad, bound, n, held, is_level)

    def memory(self) -> dict[str, Any]:
        """See `Watch.memory`."""
        return {"values": [*self._values], "held": [*self._held]}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """See `Watch.recall`."""
        self._values.clear()
        self._values.extend(float(v) for v in memory.get("values", ()))
        self._held = [float(v) for v in memory.get("held", ())]
