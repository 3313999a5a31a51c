"""The logged means of a run (`history`): metrics as series, of a fixed set or of training batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks.shared.check import Missing
from dpo_diag.ends import LEAST_ROWS, Ends, ends_of
from dpo_diag.records import Run
from dpo_diag.records.metric_aliases import logged_names
from dpo_diag.records.metric_table import METRICS
from dpo_diag.records.schemas import EVAL_SPLIT
from dpo_diag.stats import LEVEL, FloatArray


@dataclass(frozen=True)
class Series:
    """One metric of one split in step order. `fixed`: each value is over the same pairs (an evaluation set)."""

    name: str
    split: str
    steps: FloatArray
    values: FloatArray
    fixed: bool

    def __len__(self) -> int:
        return int(self.values.size)

    @property
    def finite(self) -> Series:
        """The rows whose value is finite."""
        keep = np.isfinite(self.values)
        return Series(self.name, self.split, self.steps[keep], self.values[keep], self.fixed)

    def ends(self, level: float, sign: float = 1.0) -> Ends | None:
        """Both ends of sign * values, as of training rows; None below six rows, whose noise is not known."""
        return ends_of(sign * self.values, self.steps, level=level) if len(self) >= LEAST_ROWS else None

    def between(self, low: float, high: float, level: float = LEVEL) -> Ends:
        """Both ends of the rows of these steps."""
        inside = (self.steps >= low) & (self.steps <= high)
        return ends_of(self.values[inside], batches=not self.fixed, level=level)


@dataclass(frozen=True)
class Window:
    """The steps that are looked at, both ends included; None: no bound."""

    first: int | None = None
    last: int | None = None

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows (with a column `step`) inside."""
        if self.first is None and self.last is None:
            return rows
        low = -math.inf if self.first is None else self.first
        high = math.inf if self.last is None else self.last
        return rows[(rows["step"] >= low) & (rows["step"] <= high)]


class Logged:
    """The history of a run inside a window.

    Args:
        wanted: the fixed set to look at first.
        withheld: whether a metric of a split (split, name) cannot be used: its numbers are not what it says.

    Attributes:
        refused: splits of which such a metric was asked for.
    """

    def __init__(
        self,
        run: Run,
        window: Window,
        wanted: str | None,
        withheld: Callable[[str, str], bool] = lambda split, name: False,
    ) -> None:
        self._run, self._window, self._wanted, self._withheld = run, window, wanted, withheld
        self.refused: set[str] = set()

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Rows of history; a null value (not measured) is left out, NaN (measured, NaN) stays."""
        table = self._run.arrow("history")
        measured = table.filter(table.column("value").is_valid()).to_pandas()
        for column in ("split", "name"):
            measured[column] = measured[column].astype(str)
        measured = measured.drop_duplicates(["step", "split", "name"], keep="last")
        ordered: pd.DataFrame = self._window.of(measured).sort_values(
            ["split", "name", "step"], kind="stable", ignore_index=True
        )
        return ordered

    @cached_property
    def fixed_splits(self) -> list[str]:
        """Splits of fixed sets: the wanted one, then "eval", then the rest by number of steps."""
        steps = self.rows.groupby("split", observed=True)["step"].nunique().sort_values(ascending=False, kind="stable")
        fixed = [str(s) for s in steps.index if self._run.role(str(s)) != "train"]
        return sorted(fixed, key=lambda s: (s != self._wanted, s != EVAL_SPLIT, not s.startswith(EVAL_SPLIT)))

    @cached_property
    def train_splits(self) -> list[str]:
        """Splits of training batches, those with most rows first."""
        return [str(s) for s in self.rows["split"].value_counts().index if self._run.role(str(s)) == "train"]

    @property
    def splits(self) -> list[str]:
        """Fixed sets first, then training batches."""
        return [*self.fixed_splits, *self.train_splits]

    def every(self, metric: str, split: str) -> Series | None:
        """A metric of a split, by its name or another that it is logged under, with its values that are not finite;
        None where it is not logged."""
        of_split = self.rows[self.rows["split"] == split]
        stand_ins = METRICS[metric].stand_ins if metric in METRICS else ()
        for name in (*logged_names(metric), *stand_ins):
            rows = of_split[of_split["name"] == name]
            if len(rows):
                steps, values = (rows[c].to_numpy(dtype=np.float64) for c in ("step", "value"))
                return Series(name, split, steps, values, self._run.role(split) != "train")
        return None

    def find(self, metric: str, split: str, least: int = 1) -> Series | None:
        """The finite values of a metric of a split; None where there are fewer than `least`."""
        series = self.every(metric, split)
        if series is not None and self._withheld(split, series.name):
            self.refused.add(split)
            return None
        finite = None if series is None else series.finite
        return finite if finite is not None and len(finite) >= least else None

    def whole_rows(self, series: Series) -> Series:
        """The rows at whose steps no reward or log-prob of the split is NaN or infinite."""
        rows = self.rows[
            (self.rows["split"] == series.split) & self.rows["name"].str.startswith(("rewards/", "logps/"))
        ]
        keep = ~np.isin(series.steps, rows.loc[~np.isfinite(rows["value"]), "step"].to_numpy(dtype=np.float64))
        return Series(series.name, series.split, series.steps[keep], series.values[keep], series.fixed)

    def fixed(self, metric: str, least: int = 2) -> Series:
        """A metric of the first fixed set that has it.

        Raises:
            Missing: no fixed set has it at `least` finite steps.
        """
        for split in self.fixed_splits:
            series = self.find(metric, split, least)
            if series is not None:
                return series
        raise Missing(f"no fixed evaluation set logs {metric} at {least} steps or more")

    def training(self, metric: str, least: int = LEAST_ROWS) -> Series:
        """A metric of the training batches; `ends` needs six rows.

        Raises:
            Missing: it is not logged at `least` finite steps.
        """
        for split in self.train_splits:
            series = self.find(metric, split, least)
            if series is not None:
                return series
        raise Missing(f"{metric} of the training batches is not logged at {least} steps or more")

    def raw_together(self, metrics: Sequence[str], split: str) -> FloatArray | None:
        """Values at the steps at which all are finite, (metrics, steps), whether they can be used or not; None where
        there is no such step."""
        series = [self.every(metric, split) for metric in metrics]
        columns = [pd.Series(s.finite.values, index=s.finite.steps) for s in series if s is not None]
        frame = pd.concat(columns, axis=1).dropna() if len(columns) == len(metrics) else pd.DataFrame()
        return frame.to_numpy(dtype=np.float64).T if len(frame) else None

    def together(self, metrics: Sequence[str], split: str | None = None) -> pd.DataFrame | None:
        """One column a metric, one row a step (the index) at which all are finite; None where there is no such step."""
        for candidate in [split] if split else self.splits:
            series = {metric: self.find(metric, candidate) for metric in metrics}
            columns = {m: pd.Series(s.values, index=s.steps) for m, s in series.items() if s is not None}
            if len(columns) == len(metrics):
                frame = pd.DataFrame(columns).dropna()
                if len(frame):
                    return frame
        return None
