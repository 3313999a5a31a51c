"""Several sources of one run as one history: a column per (split, name), one value a step, the first source wins."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from dpo_diag.importers.parsed import Parsed
from dpo_diag.importers.rows import UNKNOWN_STEP

Key = tuple[str, str]
"""(split, name)."""
BACKTRACKS_LISTED = 20


@dataclass
class Repeats:
    """Values of a step that was written twice: how many were dropped, how many of all differ from the one kept.

    Attributes:
        backtracks: (step, the smaller one that follows it), where a step came twice.
    """

    dropped: int = 0
    differing: int = 0
    backtracks: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class History:
    """The metrics of all sources. A column is made when it is asked for: a long log does not fit into memory as one."""

    sources: list[Parsed]
    repeats: dict[Key, Repeats] = field(default_factory=dict)
    disagreements: dict[tuple[str, Key], int] = field(default_factory=dict)

    def metrics(self) -> list[Key]:
        """Every (split, name), the sources' own."""
        return sorted({key for source in self.sources for key in source.store.metrics()})

    def splits(self) -> list[str]:
        return sorted({split for split, _ in self.metrics()})

    def column(self, split: str, name: str) -> pd.DataFrame | None:
        """One metric as rows of step (rising, each once), epoch, value; None where no source has it."""
        merged: pd.DataFrame | None = None
        for source in self.sources:
            if not source.store.holds(split, name):
                continue
            column, repeats = last_of_each_step(source.store.series(split, name))
            if column.empty:
                continue  # NaN in every row, and none of the training
            if merged is None:
                self.repeats[split, name] = repeats
                merged = column
                continue
            both = merged.merge(column, on="step", suffixes=("", "_other"))
            # 1e-3: a console's four digits and TensorBoard's float32 are the same number as the trainer's.
            differ = (both["value"] - both["value_other"]).abs() > 1e-6 + 1e-3 * both["value"].abs()
            if n := int(differ.sum()):
                self.disagreements[source.files[0].name, (split, name)] = n
            # A source's number stands where the first has NaN, as within one source.
            merged = merged[merged["value"].notna() | ~merged["step"].isin(column["step"][column["value"].notna()])]
            new = column[~column["step"].isin(merged["step"])]
            merged = pd.concat([merged, new]).sort_values("step", kind="stable", ignore_index=True)
        return merged

    def aligned(self, split: str, *names: str) -> pd.DataFrame | None:
        """Rows of step, epoch and a column per name, at the steps that have all; None where a name is not logged."""
        out: pd.DataFrame | None = None
        for name in names:
            column = self.column(split, name)
            if column is None:
                return None
            column = column.rename(columns={"value": name})
            out = column if out is None else out.merge(column[["step", name]], on="step")
        return out

    def disagreeing_values(self) -> dict[str, int]:
        """Per later source: its values that differ from the first source's."""
        out: dict[str, int] = {}
        for (file, _), n in self.disagreements.items():
            out[file] = out.get(file, 0) + n
        return out

    def _repeats_by_split(self) -> dict[str, list[Repeats]]:
        out: dict[str, list[Repeats]] = {}
        for (split, _), repeats in sorted(self.repeats.items()):
            out.setdefault(split, []).append(repeats)
        return out

    def duplicate_rows(self) -> int:
        """Rows dropped as duplicates: per split those of the metric that lost most."""
        return sum(max(r.dropped for r in of_split) for of_split in self._repeats_by_split().values())

    def differing_rows(self) -> int:
        """Repeated rows whose values differ from the ones kept, counted likewise."""
        return sum(max(r.differing for r in of_split) for of_split in self._repeats_by_split().values())

    def backtracks(self) -> list[dict[str, int | str]]:
        """Where the source's steps run backwards: a resume, or two runs in one log; once per split."""
        out: list[dict[str, int | str]] = []
        for split, of_split in self._repeats_by_split().items():
            most = max((r.backtracks for r in of_split), key=len)
            out += [{"split": split, "from": before, "to": after} for before, after in most]
        return out


def last_of_each_step(rows: pd.DataFrame) -> tuple[pd.DataFrame, Repeats]:
    """One value a step: the last number that was written (a resumed training logs its steps again), NaN where there is
    none. Unknown steps are 0."""
    step = rows["step"].to_numpy()
    if bool((step == UNKNOWN_STEP).any()):
        step = np.where(step == UNKNOWN_STEP, 0, step)
        rows = rows.assign(step=step)
    if bool((step[1:] > step[:-1]).all()):
        return rows, Repeats()
    kept = rows[rows["value"].notna() | ~rows["step"].isin(rows["step"][rows["value"].notna()])]
    kept = kept.drop_duplicates("step", keep="last").sort_values("step", kind="stable", ignore_index=True)
    if len(kept) == len(rows):
        return kept, Repeats()  # late lines, put in order: no step came twice
    value = rows["value"].to_numpy()
    final = kept.set_index("step")["value"].loc[step].to_numpy()
    same = (value == final) | (np.isnan(value) & np.isnan(final))
    backwards = np.flatnonzero(np.diff(step) < 0)[:BACKTRACKS_LISTED]
    backtracks = [(int(step[i]), int(step[i + 1])) for i in backwards]
    return kept, Repeats(len(rows) - len(kept), int((~same).sum()), backtracks)
