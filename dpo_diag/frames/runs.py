"""Several runs beside each other, told apart by their folders and by what was set differently."""

from __future__ import annotations

import glob as globbing
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.errors import DiagError
from dpo_diag.frames.run import Run
from dpo_diag.records.files import RUN_FILE

if TYPE_CHECKING:
    import pandas as pd


class Runs(list[Run]):
    """Several runs. `.history .metrics .pairs .tokens .outputs .texts .alerts` and `.pairs_wide()` stack their frames,
    with the columns of `.settings` behind: `run`, `loss_type`, `beta`, `lr`, `seed`, and the overrides that differ (as
    `run_NAME` where the frame has a column of that name: outputs' `seed` is the sample's)."""

    @cached_property
    def settings(self) -> pd.DataFrame:
        """What was set, one row per run: `run` (its folder), `kind`, `status`, `loss_type`, `beta`, `lr`, `seed`; then
        a column for each override of Hydra's that not all runs share and that says more than these."""
        from dpo_diag.frames.settings import settings

        return settings(self)

    def _stack(self, frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
        from dpo_diag.frames.wide import stacked

        told = self.settings.drop(columns=["kind", "status"])
        parts = []
        for row, frame in enumerate(frames):
            # Taken, not assigned as a scalar: each column keeps its type.
            beside = told.take([row] * len(frame)).set_axis(frame.index)
            clear = beside.rename(columns={c: f"run_{c}" for c in beside.columns if c in frame})
            parts.append(frame.join(clear))
        return stacked(parts)

    def _tables(self, name: str) -> pd.DataFrame:
        return self._stack(getattr(run, name) for run in self)

    @property
    def history(self) -> pd.DataFrame:
        return self._tables("history")

    @property
    def metrics(self) -> pd.DataFrame:
        return self._tables("metrics")

    @property
    def pairs(self) -> pd.DataFrame:
        return self._tables("pairs")

    @property
    def tokens(self) -> pd.DataFrame:
        return self._tables("tokens")

    @property
    def outputs(self) -> pd.DataFrame:
        return self._tables("outputs")

    @property
    def texts(self) -> pd.DataFrame:
        return self._tables("texts")

    @property
    def alerts(self) -> pd.DataFrame:
        return self._tables("alerts")

    def pairs_wide(self, **selected: Any) -> pd.DataFrame:
        """Every run's `.pairs_wide(columns=, steps=, splits=)`, stacked."""
        return self._stack(run.pairs_wide(**selected) for run in self)

    def _repr_html_(self) -> str:
        return str(self.settings.to_html(index=False))


def load_runs(pattern: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Runs:
    """Open every run that a glob (or a list of paths) names; folders without run.json are passed over.

    Raises:
        DiagError: no run found.
    """
    if isinstance(pattern, (str, os.PathLike)):
        paths = sorted(globbing.glob(str(pattern), recursive=True))
    else:
        paths = [str(p) for p in pattern]
    runs = Runs(Run(p) for p in paths if (Path(p) / RUN_FILE).is_file())
    if not runs:
        raise DiagError(
            "no run found", where=pattern, hint="name run folders or a glob over them, e.g. 'runs/sql_dpo/*/*'"
        )
    return runs
