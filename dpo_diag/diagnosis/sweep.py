"""Several runs in one table: what was overridden, where each began and ended, and what holds over the seeds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.evidence import ScoreCurve
from dpo_diag.diagnosis.sweep_jobs import Job, some_jobs_of
from dpo_diag.diagnosis.sweep_rank import Ranking, ranking
from dpo_diag.diagnosis.sweep_values import ENDINGS, setting_of, values_of
from dpo_diag.errors import DiagError
from dpo_diag.records import load_run
from dpo_diag.text import same

SEED = "seed"
NOT_AVERAGED = ("_n", "_low", "_high", *ENDINGS)
"""Endings of columns that no mean over seeds is taken of."""


@dataclass(frozen=True)
class Sweep:
    """Runs side by side.

    Attributes:
        runs: one row per completed run: run, one column per overridden parameter, origin (trained, scored, imported),
            data (a hash of the measured set's pairs), the values of `sweep_values.values_of`, rank and the distance to
            the best (see `sweep_rank.ranking`).
        groups: one row per setting, i.e. the runs that differ in nothing but their seed: the parameters, origin, data,
            step, runs, and per value its mean, low and high over those runs (the range, not an interval); pooled n of
            the scores.
        constant: parameters that every run has alike.
        jobs: every job, completed or not.
        apart: what makes two runs of the same overridden parameters no seeds of one another -> its values.
        not_runs: folders that were named and hold no run.
        before: column -> value before training, of what all runs began with alike; {} where there is none.
        ranking: what the ranks were given by, and what was not ranked.
        curves: run -> its task scores along the run.
    """

    runs: pd.DataFrame
    groups: pd.DataFrame
    constant: dict[str, str]
    jobs: list[Job] = field(default_factory=list)
    apart: dict[str, list[str]] = field(default_factory=dict)
    not_runs: list[str] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    ranking: Ranking = field(default_factory=Ranking)
    curves: dict[str, list[ScoreCurve]] = field(default_factory=dict)

    @property
    def unfinished(self) -> list[Job]:
        """Jobs that did not complete."""
        return [job for job in self.jobs if job.status != "completed"]

    @property
    def ranked(self) -> pd.DataFrame:
        """`runs`, the best first, those without a rank last."""
        return self.runs.sort_values("rank", kind="stable", ignore_index=True) if len(self.runs) else self.runs

    @property
    def parameters(self) -> list[str]:
        """Columns of what was overridden and differs."""
        return list(self.runs.columns[1 : self.runs.columns.get_loc("origin")]) if len(self.runs) else []

    @property
    def scores(self) -> list[str]:
        """Columns of task scores."""
        return [c for c in self.runs.columns if c.endswith("]") and f"{c}_n" in self.runs]


@dataclass(frozen=True)
class Row:
    """A completed run: what was overridden, what else makes it the same setting as another, its values and scores."""

    folder: str
    given: dict[str, str]
    setting: dict[str, str]
    values: dict[str, Any]
    curves: list[ScoreCurve]


def sweep(pattern: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Sweep:
    """Read the runs that a glob, or a list of globs and folders, names; of a multirun's folder its jobs.

    A job that did not complete is told among `jobs` alone, with the reason; a folder that is no run at all is named
    among `not_runs`.

    Raises:
        DiagError: nothing found.
    """
    patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else list(pattern)
    found, strangers = some_jobs_of(patterns)
    rows, jobs = [], []
    for job in found:
        try:
            if job.status == "completed" and job.loadable:
                run = load_run(job.folder)
                values, curves = values_of(run)
                same_as = setting_of(run, values["split"], values["step"], (job.folder / ".hydra").is_dir())
                rows.append(Row(str(job.folder), job.overrides, same_as, values, curves))
            jobs.append(job)
        except DiagError as error:
            jobs.append(Job(job.folder, "failed", job.num, str(error), None, job.overrides))
    return _tables(rows, jobs, strangers)


def _tables(rows: list[Row], jobs: list[Job], not_runs: list[str]) -> Sweep:
    names = list(dict.fromkeys(name for row in rows for name in row.given))
    # A job that failed was set differently, too.
    all_given = [row.given for row in rows] + [job.overrides for job in jobs if job.overrides]
    varied = [n for n in names if n == SEED or len({given.get(n) for given in all_given}) > 1]
    constant = {n: rows[0].given[n] for n in names if n not in varied}
    by = [n for n in varied if n != SEED]
    apart = {
        key: list(dict.fromkeys(row.setting[key] for row in rows))
        for key in (rows[0].setting if rows else ())
        if _differs(rows, by, key)
    }
    taken = {"run", "origin", "data", *(name for row in rows for name in row.values)}
    of = {n: column_set(n) if n in taken else n for n in varied}
    frame = pd.DataFrame(
        [
            {"run": row.folder, **{of[n]: row.given.get(n, "") for n in varied}, "origin": row.setting["origin"],
             "data": row.setting["data"], **row.values}
            for row in rows
        ]
    )  # fmt: skip
    alike = pd.DataFrame([{key: row.setting[key] for key in apart} for row in rows], index=frame.index)
    groups = group_runs(frame, [of[n] for n in by], alike)
    frame, ranks = ranking(
        frame, [row.curves for row in rows], [f"{r.setting['data']} {r.setting['tokenizer']}" for r in rows]
    )
    curves = {row.folder: row.curves for row in rows}
    return Sweep(frame, groups, constant, jobs, apart, not_runs, common_start(frame), ranks, curves)


def column_set(name: str) -> str:
    """The column of an override whose name is a measured one's, too: of `loss=ipo,hinge` beside the loss.

    >>> column_set("loss")
    'loss (set)'
    """
    return f"{name} (set)"


def _differs(rows: list[Row], by: list[str], key: str) -> bool:
    """Whether two runs of the same overrides differ in something else."""
    first: dict[tuple[str | None, ...], str] = {}
    return any(
        first.setdefault(tuple(row.given.get(n) for n in by), row.setting[key]) != row.setting[key] for row in rows
    )


def common_start(runs: pd.DataFrame) -> dict[str, float]:
    """Column -> its value before training, of those that every run that knows it began with alike; {} where the runs
    know of no start or began with something else."""
    out = {}
    for column in [c.removesuffix("_start") for c in runs.columns if c.endswith("_start")]:
        known = runs[f"{column}_start"].dropna().astype(float).tolist()
        if known and len(known) == int(runs[column].notna().sum()) and all(same(known[0], v) for v in known):
            out[column] = known[0]
    return out


def group_runs(runs: pd.DataFrame, by: list[str], same: pd.DataFrame) -> pd.DataFrame:
    """Mean and range of every value over the runs that differ in the seed alone; empty for no runs.

    Args:
        by: columns of `runs` whose values make a setting.
        same: what else must be equal, a row per run.
    """
    if runs.empty:
        return pd.DataFrame()
    about = {"run", "step", "split", "batches", "origin", "data", "rank", SEED, *by}
    values = [c for c in runs.columns if c not in about and not c.endswith(NOT_AVERAGED)]
    keys = [runs[name] for name in by] + [same[name].rename(f"_{name}") for name in same]
    grouped = [rows for _, rows in runs.groupby(keys, sort=False, dropna=False, observed=True)] if keys else [runs]
    out = []
    for rows in grouped:
        parts: dict[str, Any] = {name: rows[name].iloc[0] for name in [*by, "origin", "data", "step"]}
        parts["runs"] = len(rows)
        for column in values:
            finite = rows[column].to_numpy(dtype=float)
            finite = finite[np.isfinite(finite)]
            bounds = (finite.mean(), finite.min(), finite.max()) if len(finite) else (math.nan,) * 3
            parts |= {column: float(bounds[0]), f"{column}_low": float(bounds[1]), f"{column}_high": float(bounds[2])}
            if f"{column}_n" in rows:
                parts[f"{column}_n"] = float(rows[f"{column}_n"].sum())
        out.append(parts)
    return pd.DataFrame(out)
