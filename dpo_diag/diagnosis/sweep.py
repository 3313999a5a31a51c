"""Several runs in one table: what was overridden, how each ended, and what holds over the seeds."""

from __future__ import annotations

import glob as globbing
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dpo_diag.diagnosis.evidence import score_curves
from dpo_diag.diagnosis.logged import measured_split
from dpo_diag.errors import DiagError
from dpo_diag.records import Run, load_run
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.secrets import without_secrets
from dpo_diag.stats import proportion

SEED = "seed"
METRICS = {
    "loss": "loss",
    "ppl_seq_mean/chosen": "chosen_ppl_seq_mean",
    "ppl_seq_mean/rejected": "rejected_ppl_seq_mean",
    "pairs/both_fell": "both_fell",
    "rewards/accuracies": "reward_accuracy",
}
"""History name -> column: each run's last value on its evaluation split."""


@dataclass(frozen=True)
class Sweep:
    """Runs side by side.

    Attributes:
        runs: one row per finished run: run, one column per overridden parameter, step, the metrics, and per task score
            NAME its value, NAME_n, NAME_low, NAME_high (Wilson, 95 %).
        groups: one row per setting (everything but the seed alike): the parameters, runs, and per value its mean, low
            and high over those runs (the range, not an interval); pooled n of the scores.
        constant: parameters that every run has alike.
        failed: run and why.
    """

    runs: pd.DataFrame
    groups: pd.DataFrame
    constant: dict[str, str]
    failed: list[dict[str, str]] = field(default_factory=list)


def overrides(folder: Path) -> dict[str, str]:
    """The command line's overrides as Hydra kept them: name -> value as written; {} where there are none."""
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        return {}
    try:
        lines = yaml.safe_load(file.read_text(encoding="utf-8")) or []
    except yaml.YAMLError as error:
        raise DiagError("the overrides cannot be read", where=file, got=error, hint="restore or remove it") from error
    pairs = (str(line).lstrip("+~").partition("=") for line in lines)
    return {k: str(v) for k, v in without_secrets({name: value for name, _, value in pairs}).items()}


def final_values(run: Run) -> dict[str, Any]:
    """A run's last values: step, METRICS on its evaluation split, and the task scores with n and interval."""
    history = run.history
    split = measured_split(run)
    own = history.loc[history["split"] == split]
    values: dict[str, Any] = {"step": int(own["step"].max()) if len(own) else None, "split": split}
    for name, column in METRICS.items():
        rows = own.loc[own["name"] == name]
        values[column] = float(rows["value"].iloc[-1]) if len(rows) else math.nan
    for curve in score_curves(run):
        score, n = float(curve.values[-1]), float(curve.n[-1])
        interval = proportion(score * n, n)
        column = f"{curve.name}[{curve.split}]"
        values |= {column: score, f"{column}_n": n, f"{column}_low": interval.low, f"{column}_high": interval.high}
    return values


def sweep(pattern: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Sweep:
    """Read the runs that a glob, or a list of globs and folders, names.

    A folder that Hydra made but that holds no finished run counts as failed, with the reason; folders that are no runs
    at all are passed over.

    Raises:
        DiagError: nothing found.
    """
    patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else list(pattern)
    folders = sorted({Path(p) for text in patterns for p in globbing.glob(str(text), recursive=True)})
    rows, failed = [], []
    for folder in folders:
        if not (folder / RUN_FILE).is_file():
            if (folder / ".hydra").is_dir():
                failed.append({"run": str(folder), "why": "no run.json: it ended before the first record"})
            continue
        try:
            run = load_run(folder)
            status = str(run.info.status)
            if status != "finished":
                failed.append({"run": str(folder), "why": f"status {status}"})
                continue
            rows.append((str(folder), overrides(folder), final_values(run)))
        except DiagError as error:
            failed.append({"run": str(folder), "why": str(error)})
    if not rows and not failed:
        raise DiagError(
            "no run found",
            where=", ".join(map(str, patterns)),
            hint="name run folders or a glob, e.g. 'runs/sql_dpo/*/*'",
        )
    return _tables(rows, failed)


def _tables(rows: list[tuple[str, dict[str, str], dict[str, Any]]], failed: list[dict[str, str]]) -> Sweep:
    names = list(dict.fromkeys(name for _, given, _ in rows for name in given))
    varied = [n for n in names if n == SEED or len({given.get(n) for _, given, _ in rows}) > 1]
    constant = {n: rows[0][1][n] for n in names if n not in varied}
    frame = pd.DataFrame([{"run": f, **{n: given.get(n, "") for n in varied}, **values} for f, given, values in rows])
    return Sweep(frame, group_runs(frame, [n for n in varied if n != SEED]), constant, failed)


def group_runs(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean and range of every value over the runs that differ in the seed alone; empty for no runs."""
    if runs.empty:
        return pd.DataFrame()
    about = {"run", "step", "split", SEED, *by}
    values = [c for c in runs.columns if c not in about and not c.endswith(("_n", "_low", "_high"))]
    grouped = list(runs.groupby(by, sort=False, dropna=False)) if by else [((), runs)]
    out = []
    for key, rows in grouped:
        parts: dict[str, Any] = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
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
