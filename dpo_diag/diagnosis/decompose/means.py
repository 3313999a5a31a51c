"""What a log of means supports: other trainers write batch or evaluation means, never pairs.

From means alone nothing can be split over pairs, and no share of pairs can be counted. What can be said: where the
logged means went, how large the change is against the scatter of batches, and, where a log holds both a cross-entropy
and `ppl_seq_mean`, the dispersion term (the identity of DESIGN section 2.1 holds for means as well).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.ends import ends_of
from dpo_diag.errors import DiagError
from dpo_diag.records import Run, metrics
from dpo_diag.records.schemas import SIDES
from dpo_diag.stats import LEVEL

NAMES = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected", "nll_loss", "entropy", "grad_norm", "ce/chosen", "ce/rejected", "ppl_token/chosen",
    "ppl_token/rejected", "ppl_seq_mean/chosen", "ppl_seq_mean/rejected", "ppl_seq_geomean/chosen",
    "ppl_seq_geomean/rejected", "bits_per_byte/chosen", "bits_per_byte/rejected", "greedy_logp/chosen",
    "entropy/chosen", "top1/chosen", "pairs/both_fell", "pairs/chosen_fell",
    "ce/response", "ppl_token/response", "ppl_seq_mean/response", "ppl_seq_geomean/response", "bits_per_byte/response",
    "top1/response", "top5/response", "ce/prompt", "ppl_token/prompt", "kl_reverse/response", "kl_forward/response",
    "kl_reverse/prompt", "kl_forward/prompt", "aux/label_smoothing", "aux/confidence_penalty", "aux/z_loss",
    "aux/infonce", "loss_on_prompt",
)  # fmt: skip
"""Logged means that an explanation reads, in the order in which it shows them."""

BASELINE = "baseline/"


def history_split(run: Run, split: str | None) -> tuple[str | None, list[int]]:
    """The split whose history is read (fixed sets with two rows or more first) and its steps."""
    history = run.history
    rows = history.loc[history["name"].isin(NAMES) & history["value"].notna()]
    steps = {str(s): sorted({int(x) for x in group["step"]}) for s, group in rows.groupby("split", observed=True)}
    if split is not None:
        return (split, steps[split]) if split in steps else (None, [])
    for name in run.preferred(steps):
        if len(steps[name]) >= 2:
            return name, steps[name]
    return next(iter(steps.items()), (None, []))


@dataclass
class Means:
    """Logged means at two steps of a split.

    Attributes:
        windows: whether rows are training batches, so that means of rows are compared, or evaluations.
        values: name -> `Ends.document`, and of evaluations "lowest", "highest" and their steps.
        rows: steps of the split between the two.
        withheld: names whose values cannot be what they say (DVG028).
        level: confidence of the intervals.
        scale: what the loss is measured against (`records.metric_kinds.supervised`): name behind baseline/ -> value.
    """

    split: str | None
    windows: bool
    from_step: int | None = None
    to_step: int | None = None
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: int = 0
    level: float = LEVEL
    withheld: tuple[str, ...] = ()
    scale: dict[str, float] = field(default_factory=dict)

    @property
    def compared(self) -> str | None:
        """What was compared, in words; None where nothing was."""
        compared = "means of the first and the last rows" if self.windows else "first and last evaluation"
        return None if self.from_step is None else compared

    def document(self) -> dict[str, Any]:
        """As the explanation holds it."""
        return {
            "split": self.split, "from_step": self.from_step, "to_step": self.to_step, "method": self.compared,
            "values": self.values, "windows": self.windows, "rows": self.rows, "level": self.level,
            "withheld": list(self.withheld), **({"scale": self.scale} if self.scale else {}),
        }  # fmt: skip


def summarise_means(
    run: Run,
    from_step: Step | None,
    to_step: int | None,
    split: str | None,
    starts: Mapping[str, float] | None = None,
    level: float = LEVEL,
) -> Means:
    """Where the logged means of a split went: `ends_of` of each, and of a fixed set the lowest and highest on the way.

    An empty history has no values; the steps named are those of rows within the ones asked for.

    Args:
        starts: metric -> the value that the run is known to have started from; not used where a later first step is
            asked for.
        level: confidence of the intervals.

    Raises:
        DiagError: no row between the steps.
    """
    name, steps = history_split(run, split)
    means = Means(name, name is not None and run.role(name) == "train", level=level)
    if name is None or not steps:
        return means
    rows = run.history.loc[run.history["split"] == name]
    start = steps[0] if from_step in (None, REFERENCE) else int(from_step or 0)
    end = steps[-1] if to_step is None else int(to_step)
    within = [step for step in steps if start <= step <= end]
    if not within:
        raise DiagError("no row between these steps", where="--from, --to", got=f"{start} to {end}",
                        expected=f"steps from {steps[0]} to {steps[-1]}", usage=True)  # fmt: skip
    means.from_step, means.to_step, means.rows = within[0], within[-1], len(within)
    # Of a training set they stand beside its first row alone.
    scale = rows.loc[rows["name"].astype(str).str.startswith(BASELINE)].drop_duplicates("name", keep="last")
    rows = rows.loc[(rows["step"] >= within[0]) & (rows["step"] <= within[-1])]
    means.scale = {str(n).removeprefix(BASELINE): float(v) for n, v in zip(scale["name"], scale["value"], strict=True)}
    known = starts if starts and within[0] == steps[0] else {}
    for metric in NAMES:
        series = rows.loc[rows["name"] == metric, ["step", "value"]].sort_values("step")
        if len(series):
            ends = ends_of(
                series["value"], series["step"], batches=means.windows, reference=known.get(metric), level=level
            )
            means.values[metric] = ends.document() | ({} if means.windows else _extremes(series))
            if not run.info.steps_are_stated:
                means.values[metric]["first_step"] = None
    return means


def _extremes(series: pd.DataFrame) -> dict[str, Any]:
    """Lowest and highest evaluation and their steps; {} below three."""
    finite = series.loc[np.isfinite(series["value"].astype(np.float64))]
    if len(finite) < 3:
        return {}
    values, steps = finite["value"].to_numpy(dtype=np.float64), finite["step"].to_numpy()
    low, high = int(values.argmin()), int(values.argmax())
    return {
        "lowest": float(values[low]), "lowest_step": int(steps[low]),
        "highest": float(values[high]), "highest_step": int(steps[high]),
    }  # fmt: skip


def perplexity_of_means(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The perplexity section that means allow: from, to, dlog; level where a cross-entropy per response is logged, and
    then the second term as the difference (residual 0 by construction). {"not_applicable": reason} if nothing is."""
    result: dict[str, Any] = {}
    for side in SIDES:
        section: dict[str, Any] = {}
        level = _level(values, side)
        for name, extra in (("ppl_token", "length_weight"), ("ppl_seq_mean", "dispersion"), ("ppl_seq_geomean", None)):
            entry = values.get(f"{name}/{side}")
            if entry is None or entry["from"] is None or min(entry["from"], entry["to"]) <= 0:
                continue
            dlog = math.log(entry["to"]) - math.log(entry["from"])
            row: dict[str, Any] = {"from": entry["from"], "to": entry["to"], "dlog": dlog, "level": level}
            if extra:
                row[extra] = None if level is None else dlog - level
            row["residual"] = None if level is None else (dlog - level if extra is None else 0.0)
            section[name] = row
        if level is not None and "ppl_seq_geomean" not in section:
            entry = values[f"ce/{side}"]
            section["ppl_seq_geomean"] = {
                "from": metrics.safe_exp(entry["from"]), "to": metrics.safe_exp(entry["to"]),
                "dlog": level, "level": level, "residual": 0.0,
            }  # fmt: skip
        if section:
            result[side] = section
    if not result:
        if "ppl_token/response" in values or "ce/response" in values:
            return {
                "not_applicable": "a supervised run has no chosen and rejected answers; the perplexities of response "
                "and prompt stand among the means"
            }
        return {
            "not_applicable": "the log holds neither cross-entropies nor perplexities, and log-prob sums without token "
            "counts give none"
        }
    return result


def _level(values: dict[str, dict[str, Any]], side: str) -> float | None:
    geomean = values.get(f"ppl_seq_geomean/{side}")
    if geomean and geomean["from"] and geomean["to"] and min(geomean["from"], geomean["to"]) > 0:
        return math.log(geomean["to"]) - math.log(geomean["from"])
    entry = values.get(f"ce/{side}")
    return None if entry is None or entry["delta"] is None else float(entry["delta"])
