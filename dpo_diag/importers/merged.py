"""Several sources of one run as one history: columns by (split, name), duplicates dropped, the first source wins."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dpo_diag.importers.parsed import Parsed
from dpo_diag.importers.rows import UNKNOWN_STEP, Series

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Key = tuple[str, str]


@dataclass
class Column:
    """One metric of one split, one value a step, steps rising."""

    step: IntArray
    epoch: FloatArray
    value: FloatArray
    weight: FloatArray | None = None
    derived: bool = False

    def at_common_steps(self, other: Column) -> tuple[Column, FloatArray]:
        """This column and the other's values at the steps that both have."""
        if np.array_equal(self.step, other.step):
            return Column(self.step, self.epoch, self.value), other.value
        _, mine, theirs = np.intersect1d(self.step, other.step, assume_unique=True, return_indices=True)
        return Column(self.step[mine], self.epoch[mine], self.value[mine]), other.value[theirs]


@dataclass
class Duplicates:
    """Values of a step that was written twice: dropped, and how many of them differed from the one kept."""

    dropped: int = 0
    differing: int = 0
    backtracks: list[tuple[int, int]] = field(default_factory=list)  # (step, the smaller one that follows it)


@dataclass
class History:
    """Reads columns from the sources when asked; derived columns are added by `add`."""

    sources: list[Parsed]
    derived: dict[Key, Column] = field(default_factory=dict)
    duplicates: dict[Key, Duplicates] = field(default_factory=dict)
    disagreements: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def metrics(self) -> list[Key]:
        """Every (split, name), the sources' own."""
        return sorted({key for s in self.sources if s.store is not None for key in s.store.metrics()})

    def has(self, split: str, name: str) -> bool:
        return any(s.store is not None and (split, name) in s.store.metrics() for s in self.sources)

    def splits(self) -> list[str]:
        return sorted({split for split, _ in self.metrics()})

    def column(self, split: str, name: str) -> Column | None:
        """One metric, merged over the sources; None where no source has it."""
        merged: Column | None = None
        for source in self.sources:
            if source.store is None or (split, name) not in source.store.metrics():
                continue
            column, duplicates = last_of_each_step(source.store.series(split, name))
            if merged is None:
                self.duplicates[split, name] = duplicates
            merged = column if merged is None else self._filled(merged, column, (source.files[0].name, split, name))
        return merged

    def _filled(self, first: Column, second: Column, where: tuple[str, str, str]) -> Column:
        """The first source's values, the second's where the first has none; disagreements are counted."""
        _, mine, theirs = np.intersect1d(first.step, second.step, assume_unique=True, return_indices=True)
        a, b = first.value[mine], second.value[theirs]
        with np.errstate(invalid="ignore"):
            # 1e-3: a console's four digits and TensorBoard's float32 are the same number as the trainer's.
            differ = np.abs(a - b) > 1e-6 + 1e-3 * np.abs(a)
        if n := int(differ.sum()):
            self.disagreements[where] = n
        new = np.ones(len(second.step), dtype=bool)
        new[theirs] = False
        step = np.concatenate([first.step, second.step[new]])
        order = np.argsort(step, kind="stable")
        return Column(
            step[order],
            np.concatenate([first.epoch, second.epoch[new]])[order],
            np.concatenate([first.value, second.value[new]])[order],
        )

    def disagreeing_values(self) -> dict[str, int]:
        """Per later source: its values that differ from the first source's."""
        out: dict[str, int] = {}
        for (file, _, _), n in self.disagreements.items():
            out[file] = out.get(file, 0) + n
        return out

    def duplicate_rows(self) -> int:
        """Rows dropped as duplicates: per split the metric that lost most."""
        worst: dict[str, int] = {}
        for (split, _), found in self.duplicates.items():
            worst[split] = max(worst.get(split, 0), found.dropped)
        return sum(worst.values())

    def backtracks(self) -> list[dict[str, int | str]]:
        """Where the source's steps run backwards: a resume, or two runs in one log; once per split."""
        out: list[dict[str, int | str]] = []
        for split in sorted({s for s, _ in self.duplicates}):
            most = max((d.backtracks for (s, _), d in self.duplicates.items() if s == split), key=len)
            out += [{"split": split, "from": a, "to": b} for a, b in most]
        return out

    def differing_rows(self) -> int:
        worst: dict[str, int] = {}
        for (split, _), found in self.duplicates.items():
            worst[split] = max(worst.get(split, 0), found.differing)
        return sum(worst.values())


def last_of_each_step(series: Series) -> tuple[Column, Duplicates]:
    """One value a step: the last that was written (a resumed training logs its steps again)."""
    step = series.step
    if len(step) and bool((step == UNKNOWN_STEP).any()):
        step = np.where(step == UNKNOWN_STEP, 0, step)
    if len(step) and bool((step[1:] > step[:-1]).all()):
        return Column(step, series.epoch, series.value), Duplicates()
    falls = np.flatnonzero(np.diff(step) < 0)
    backtracks = [(int(step[i]), int(step[i + 1])) for i in falls[:20]]
    order = np.argsort(step, kind="stable")
    sorted_step, value = step[order], series.value[order]
    last = np.ones(len(order), dtype=bool)
    last[:-1] = sorted_step[1:] != sorted_step[:-1]
    kept_value = value[last][np.cumsum(last) - last]  # for every row the value that was kept for its step
    same = (kept_value == value) | (np.isnan(kept_value) & np.isnan(value))
    found = Duplicates(int((~last).sum()), int((~same).sum()), backtracks)
    keep = order[last]
    if not found.dropped:
        found.backtracks = []  # late lines, put in order: no step came twice
    return Column(step[keep], series.epoch[keep], series.value[keep]), found
