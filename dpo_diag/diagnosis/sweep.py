"""Several runs in one table: what was overridden, how each ended, and what holds over the seeds."""

from __future__ import annotations

import hashlib
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
from dpo_diag.diagnosis.logged import measured_split, metric_rows
from dpo_diag.diagnosis.pair_rows import PairRows
from dpo_diag.ends import ends_of
from dpo_diag.errors import DiagError
from dpo_diag.records import Run, load_run
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.job_folders import run_folders
from dpo_diag.records.secrets import without_secrets
from dpo_diag.text import to_json
from dpo_diag.thresholds import defaults

SEED = "seed"
METRICS = {
    "loss": "loss",
    "ppl_seq_mean/chosen": "chosen_ppl_seq_mean",
    "ppl_seq_mean/rejected": "rejected_ppl_seq_mean",
    "pairs/both_fell": "both_fell",
    "rewards/accuracies": "reward_accuracy",
}
"""Metric -> column: each run's last value on its evaluation split, of training batches the mean of the last rows."""


@dataclass(frozen=True)
class Sweep:
    """Runs side by side.

    Attributes:
        runs: one row per finished run: run, one column per overridden parameter, origin (trained, scored, imported),
            data (a hash of the measured set's pairs), step, split, batches (whether the metrics are those of training
            batches: no evaluation is recorded), the metrics, and per task score NAME its value, NAME_n,
            NAME_low, NAME_high (over its questions), and NAME_change since its first evaluation, with its interval in
            NAME_change_low and NAME_change_high (that of the explanation).
        groups: one row per setting, i.e. the runs that differ in nothing but their seed: the parameters, origin, data,
            step, runs, and per value its mean, low and high over those runs (the range, not an interval); pooled n of
            the scores.
        constant: parameters that every run has alike.
        failed: run and why.
        apart: what beside the overridden parameters makes two runs no seeds of one another -> the values.
        not_runs: folders that were named and hold no run.
    """

    runs: pd.DataFrame
    groups: pd.DataFrame
    constant: dict[str, str]
    failed: list[dict[str, str]] = field(default_factory=list)
    apart: dict[str, list[str]] = field(default_factory=dict)
    not_runs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    """A finished run: what was overridden, what else makes it the same setting as another, its last values."""

    folder: str
    given: dict[str, str]
    setting: dict[str, str]
    values: dict[str, Any]


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


def _last(rows: pd.DataFrame, batches: bool) -> float:
    """The last value; of training batches, one of which is noise, the mean of the last rows (`ends.ends_of`)."""
    last = float(rows["value"].iloc[-1])
    return ends_of(rows["value"], batches=batches).end if math.isfinite(last) else last


def final_values(run: Run) -> dict[str, Any]:
    """A run's last values: step, METRICS on its evaluation split (as logged, else from the pair records), and the task
    scores with n and interval."""
    history, pairs = run.history, PairRows(run)
    split = measured_split(run) or next(iter(pairs.steps), None)
    steps = [*history.loc[history["split"] == split, "step"], *pairs.steps.get(split or "", ())]
    batches = split is not None and run.role(split) == "train"
    values: dict[str, Any] = {"step": int(max(steps)) if steps else None, "split": split, "batches": batches}
    for name, column in METRICS.items():
        rows = pd.DataFrame() if split is None else metric_rows(pairs, name, split)
        values[column] = _last(rows, batches) if len(rows) else math.nan
    for curve in score_curves(run):
        score, interval = float(curve.values[-1]), curve.value_at(-1, defaults())
        column = f"{curve.name}[{curve.split}]"
        values |= {column: score, f"{column}_n": float(interval.n or curve.n[-1])}
        values |= {f"{column}_low": interval.low, f"{column}_high": interval.high}
        if (since := curve.change(None, None, defaults())) is not None:
            change = since.change
            values |= {f"{column}_change": change.value, f"{column}_change_low": change.low}
            values |= {f"{column}_change_high": change.high}
    return values


def setting(run: Run, split: str | None, step: int | None, hydra: bool) -> dict[str, str]:
    """What two runs have in common that differ in their seed alone, beside the overrides: origin, data, last step,
    model, loss and the trainer's arguments. Pairs that nothing names are a data set of the run's own, unless Hydra's
    overrides (`hydra`) describe the run."""
    info = run.info
    known = info.splits.get(split or "")
    # Where the source is known, a seed may draw another held-out set from it.
    sources = [info.data.get("fingerprint"), (info.data.get("held_out_source") or {}).get("fingerprint")]
    data = "+".join(str(s)[:16] for s in sources if s) or (known.fingerprint if known is not None else None)
    if data is None and split is not None:
        ids = sorted(set(run.read("pairs", ["pair_id"], splits=[split])["pair_id"]))
        data = hashlib.sha256("".join(map(str, ids)).encode()).hexdigest()[:16] if ids else None
    arguments = {k: v for k, v in vars(info.training).items() if k not in ("seed", "data_seed") and v is not None}
    return {
        "origin": str(run.kind),
        "data": data or ("" if hydra else f"not known ({run.name})"),
        "step": str(step),
        "model": str(info.model.name or ""),
        "loss": to_json(info.loss.to_dict()) if info.loss is not None else str(info.loss_reason or ""),
        "training": to_json(arguments),
    }


def sweep(pattern: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Sweep:
    """Read the runs that a glob, or a list of globs and folders, names; of a multirun's folder its jobs.

    A folder that Hydra made but that holds no finished run counts as failed, with the reason; one that is no run at all
    is named among `not_runs`.

    Raises:
        DiagError: nothing found.
    """
    patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else list(pattern)
    folders, strangers = run_folders(patterns)
    rows, failed = [], []
    for folder in folders:
        if not (folder / RUN_FILE).is_file():
            failed.append({"run": str(folder), "why": "no run.json: it ended before the first record"})
            continue
        try:
            run = load_run(folder)
            status = str(run.info.status)
            if status != "finished":
                failed.append({"run": str(folder), "why": f"status {status}"})
                continue
            given, values = overrides(folder), final_values(run)
            same = setting(run, values["split"], values["step"], (folder / ".hydra").is_dir())
            rows.append(_Row(str(folder), given, same, values))
        except DiagError as error:
            failed.append({"run": str(folder), "why": str(error)})
    return _tables(rows, failed, strangers)


def _tables(rows: list[_Row], failed: list[dict[str, str]], not_runs: list[str]) -> Sweep:
    names = list(dict.fromkeys(name for row in rows for name in row.given))
    varied = [n for n in names if n == SEED or len({row.given.get(n) for row in rows}) > 1]
    constant = {n: rows[0].given[n] for n in names if n not in varied}
    apart = {key: list(dict.fromkeys(row.setting[key] for row in rows)) for key in (rows[0].setting if rows else ())}
    apart = {key: values for key, values in apart.items() if len(values) > 1}
    frame = pd.DataFrame(
        [
            {"run": row.folder, **{n: row.given.get(n, "") for n in varied}, "origin": row.setting["origin"],
             "data": row.setting["data"], **row.values}
            for row in rows
        ]
    )  # fmt: skip
    by = [n for n in varied if n != SEED]
    same = pd.DataFrame([{key: row.setting[key] for key in apart} for row in rows], index=frame.index)
    return Sweep(frame, group_runs(frame, by, same), constant, failed, apart, not_runs)


def group_runs(runs: pd.DataFrame, by: list[str], same: pd.DataFrame) -> pd.DataFrame:
    """Mean and range of every value over the runs that differ in the seed alone; empty for no runs.

    Args:
        by: columns of `runs` whose values make a setting.
        same: what else must be equal, a row per run.
    """
    if runs.empty:
        return pd.DataFrame()
    about = {"run", "step", "split", "batches", "origin", "data", SEED, *by}
    values = [c for c in runs.columns if c not in about and not c.endswith(("_n", "_low", "_high"))]
    keys = [runs[name] for name in by] + [same[name].rename(f"_{name}") for name in same]
    grouped = [rows for _, rows in runs.groupby(keys, sort=False, dropna=False)] if keys else [runs]
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
