"""One logged metric as a series, and where a loss starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One metric of one split in step order. `fixed`: each value is over the same pairs (an evaluation set)."""

    name: str
    split: str
    steps: FloatArray
    values: FloatArray
    weights: FloatArray
    fixed: bool

    def __len__(self) -> int:
        return int(self.values.size)

    @property
    def finite(self) -> Series:
        keep = np.isfinite(self.values)
        return Series(self.name, self.split, self.steps[keep], self.values[keep], self.weights[keep], self.fixed)


@dataclass(frozen=True)
class Start:
    """The loss of a policy that equals its reference: known from the loss's definition, or assumed, and why."""

    value: float
    floor: float | None
    known: bool
    reason: str


def is_training(split: str) -> bool:
    """Whether a split's values come from training batches, by its name."""
    return split == "train" or split.startswith(("train_", "train/"))
