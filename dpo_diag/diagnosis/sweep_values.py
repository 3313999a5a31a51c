"""What one run of a sweep has to show: where it began, where it ended, its best, each with its step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.evidence import ScoreCurve, score_curves
from dpo_diag.diagnosis.logged import at_reference, measured_split, metric_rows
from dpo_diag.diagnosis.pair_rows import PairRows
from dpo_diag.ends import ends_of
from dpo_diag.records import Run
from dpo_diag.records.metric_table import metric_of
from dpo_diag.text import to_json
from dpo_diag.thresholds import defaults

METRICS = {
    "loss": "loss",
    "rewards/accuracies": "reward_accuracy",
    "ce/chosen": "chosen_ce",
    "ppl_seq_mean/chosen": "chosen_ppl_seq_mean",
    "ppl_seq_mean/rejected": "rejected_ppl_seq_mean",
    "pairs/both_fell": "both_fell",
}
"""Metric -> column: each run's last value on its evaluation split, of training batches the mean of the last rows."""
ENDINGS = ("_start", "_best", "_best_step")
"""Beside a value: what it was before training, at its best evaluation, and at which step that was."""


def values_of(run: Run) -> tuple[dict[str, Any], list[ScoreCurve]]:
    """A run's row of the table, and its task scores along the run.

    The row: step, split, batches; METRICS on its evaluation split (as logged, else from the pair records), each with
    its ENDINGS (None where there is none; batches have none); `chosen_ce_change` since the start; the task scores with
    n, interval, ENDINGS, and the change since the first evaluation, with the interval that the explanation gives it.
    """
    history, pairs = run.history, PairRows(run)
    split = measured_split(run) or next(iter(pairs.steps), None)
    steps = [*history.loc[history["split"] == split, "step"], *pairs.steps.get(split or "", ())]
    batches = split is not None and run.role(split) == "train"
    values: dict[str, Any] = {"step": int(max(steps)) if steps else None, "split": split, "batches": batches}
    before = {} if split is None or batches else at_reference(pairs, split)
    for name, column in METRICS.items():
        rows = pd.DataFrame() if split is None else metric_rows(pairs, name, split)
        values[column] = _last(rows, batches) if len(rows) else math.nan
        if column == "chosen_ce":
            values["chosen_ce_change"] = math.nan
        endings: tuple[float | None, float | None, int | None] = (None, None, None)
        if len(rows) and not batches:
            steps_, measured = rows["step"].to_numpy(dtype=int), rows["value"].to_numpy(dtype=float)
            start = before.get(name, float(measured[0]) if steps_[0] == 0 else math.nan)
            endings = (_known(start), *_best(name, steps_, measured))
            if column == "chosen_ce":
                values["chosen_ce_change"] = values[column] - start
        values |= dict(zip((f"{column}{e}" for e in ENDINGS), endings, strict=True))
    curves = score_curves(run)
    for curve in curves:
        values |= _of_score(curve)
    return values, curves


def column_of(curve: ScoreCurve) -> str:
    """A score's column: "execution_accuracy[held_out]"."""
    return f"{curve.name}[{curve.split}]"


def _of_score(curve: ScoreCurve) -> dict[str, Any]:
    column, interval = column_of(curve), curve.value_at(-1, defaults())
    values: dict[str, Any] = {column: float(curve.values[-1]), f"{column}_n": float(interval.n or curve.n[-1])}
    values |= {f"{column}_low": interval.low, f"{column}_high": interval.high}
    if (since := curve.change(None, None, defaults())) is not None:
        change = since.change
        values |= {f"{column}_change": change.value, f"{column}_change_low": change.low}
        values |= {f"{column}_change_high": change.high}
    start = _known(curve.values[0]) if curve.steps[0] == 0 else None
    endings = (start, *_best(f"score/{curve.name}", curve.steps, curve.values))
    return values | dict(zip((f"{column}{e}" for e in ENDINGS), endings, strict=True))


def questions_of(curve: ScoreCurve) -> str:
    """What tells whether two scores are of the same questions: their ids, or where they are not recorded how many."""
    if curve.prompts:
        return hashlib.sha256(to_json(list(curve.prompts)).encode()).hexdigest()[:16]
    return f"n={curve.n[-1]:.0f}" if curve.n[-1] > 0 else "not known"


def _known(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


def _best(name: str, steps: Any, values: Any) -> tuple[float | None, int | None]:
    """The best of the evaluations and its step, the earliest of equals; (None, None) for a metric without a better."""
    metric = metric_of(name)
    finite = np.isfinite(values)
    if metric is None or metric.better == "neither" or not finite.any():
        return None, None
    turned = np.where(finite, values if metric.better == "higher" else -values, -np.inf)
    at = int(turned.argmax())
    return float(values[at]), int(steps[at])


def _last(rows: pd.DataFrame, batches: bool) -> float:
    """The last value; of training batches, one of which is noise, the mean of the last rows (`ends.ends_of`)."""
    last = float(rows["value"].iloc[-1])
    return ends_of(rows["value"], batches=batches).end if math.isfinite(last) else last


def setting_of(run: Run, split: str | None, step: int | None, hydra: bool) -> dict[str, str]:
    """What two runs have in common that differ in their seed alone, beside the overrides: origin, data, last step,
    model, tokenizer, loss and the trainer's arguments. Pairs that nothing names are a data set of the run's own, unless
    Hydra's overrides (`hydra`) describe the run."""
    info = run.info
    known = info.splits.get(split or "")
    # Where the source is known, a seed may draw another held-out set from it.
    sources = [info.data.get("fingerprint"), (info.data.get("held_out_source") or {}).get("fingerprint")]
    data = "+".join(str(s)[:16] for s in sources if s) or (known.fingerprint if known is not None else None)
    if data is None and split is not None:
        ids = sorted(set(run.read("pairs", ["pair_id"], splits=[split])["pair_id"]))
        data = hashlib.sha256("".join(map(str, ids)).encode()).hexdigest()[:16] if ids else None
    left_out = ("seed", "data_seed", "shared_prefix")  # the last holds what was measured before the first step
    arguments: Mapping[str, Any] = {k: v for k, v in vars(info.training).items() if k not in left_out and v is not None}
    return {
        "origin": str(run.kind),
        "data": data or ("" if hydra else f"not known ({run.name})"),
        "step": str(step),
        "model": str(info.model.name or ""),
        "tokenizer": (info.tokenizer.fingerprint or "")[:16],
        "loss": to_json(info.loss.to_dict()) if info.loss is not None else str(info.loss_reason or ""),
        "training": to_json(arguments),
    }
