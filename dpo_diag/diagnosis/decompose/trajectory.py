"""The whole run, evaluation by evaluation, on the same pairs: so that the steps' parts telescope to the run's change,
and the place where loss and perplexity part ways can be found without being asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.aligned import COUNTS, Aligned, side_arrays
from dpo_diag.diagnosis.decompose.loss import finite_pairs, split_losses
from dpo_diag.diagnosis.decompose.perplexity import perplexity_intervals
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import column_at, needed_columns, two_steps
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics
from dpo_diag.stats import Interval

_PER_TOKEN = {"entropy": "entropy_sum", "greedy_logp": "greedy_logp_sum"}


@dataclass(frozen=True)
class Trajectory:
    """`steps`: one row per evaluation (see `follow`); `summary`: sums over the run; `chosen_logp`: mean chosen sum_logp
    (nats) at each of `steps`."""

    aligned: Aligned
    steps: pd.DataFrame
    summary: dict[str, Any]
    chosen_logp: npt.NDArray[np.float64]


@dataclass(frozen=True)
class TurningPoint:
    """Where a quantity of the chosen answers was best, while the loss fell on.

    `quantity`: a perplexity, or sum_logp; `start`, `end`: its value at `step` and `to_step`; `worse_by`: the loss
    between them, in log-perplexity or nats of the sum; `loss_from`, `loss_to`: the preference loss there, NaN if
    unknown.
    """

    quantity: str
    step: int
    to_step: int
    start: float
    end: float
    worse_by: Interval
    loss_from: float
    loss_to: float

    def document(self) -> dict[str, Any]:
        """As the explanation holds it."""
        return {
            "quantity": self.quantity, "step": self.step, "to_step": self.to_step, "from": self.start, "to": self.end,
            "worse_by": self.worse_by.value, "interval": self.worse_by.bounds, "loss_from": self.loss_from,
            "loss_to": self.loss_to,
        }  # fmt: skip


def follow(aligned: Aligned, spec: LossSpec | None) -> Trajectory:
    """Every evaluation between the two steps on the aligned pairs, and the reference where it is the start.

    Returns: `Trajectory.steps` with `step`, `loss`, `loss_chosen_part`, `loss_rejected_part` (since the row before; and
        `loss_coefficient_part`, where each pair has its own beta),
        `{perplexity}_{side}` (in `aligned.unit`), `a_mean`, `b_mean`, `both_fell` (share of pairs, against the first
        row), `top1_{side}`, `entropy_{side}`, `greedy_logp_{side}` (nats per token); what is unknown is NaN. Steps that
        lack some of the pairs are left out and listed in the summary: sums over different pairs would not telescope.
    """
    if not len(aligned.pairs):
        return Trajectory(aligned, pd.DataFrame(columns=["step"]), {}, np.zeros(0))
    rows: list[dict[str, Any]] = []
    chosen: list[float] = []
    missing: list[int] = []
    start = last = None
    for step, model in aligned.path():
        now = aligned.at(model)
        if now is None:
            missing.append(step)
            continue
        start = now if start is None else start
        row: dict[str, Any] = {"step": step, **_levels(now, aligned.sides, aligned.unit)}
        if spec is not None:
            row |= _loss_step(spec, now if last is None else last, now)
        if len(aligned.sides) == 2:
            change = [now[c].to_numpy() - start[c].to_numpy() for c in (f"{s}_sum_logp" for s in aligned.sides)]
            row["both_fell"] = metrics.quadrants(change[0], change[1]).both_fell
        rows.append(row)
        chosen.append(_mean(now["chosen_sum_logp"]) if "chosen" in aligned.sides else math.nan)
        last = now
    frame = pd.DataFrame(rows, columns=None if rows else ["step"])
    steps = [row["step"] for row in rows]
    return Trajectory(aligned, frame, {"steps": steps, "steps_left_out": missing, **_sums(frame)}, np.array(chosen))


def _levels(now: pd.DataFrame, sides: tuple[str, ...], unit: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for letter in "ab":
        row[f"{letter}_mean"] = _mean(now[letter]) if letter in now else math.nan
    for side in sides:
        tokens = now[f"{side}_n_tokens"].to_numpy()
        total = float(np.nansum(tokens))
        hits = float((now[f"{side}_top1"].to_numpy() * tokens).sum())
        row[f"top1_{side}"] = hits / total if total else math.nan
        for name, column in _PER_TOKEN.items():
            row[f"{name}_{side}"] = float(now[f"{side}_{column}"].to_numpy().sum()) / total if total else math.nan
        if unit is None:
            continue
        s, n = now[f"{side}_sum_logp"].to_numpy(), now[f"{side}_{COUNTS[unit]}"].to_numpy()
        keep = np.isfinite(s) & (n > 0)
        for name, log_ppl in metrics.PERPLEXITIES.items():
            row[f"{name}_{side}"] = metrics.safe_exp(log_ppl(s[keep], n[keep]))
    return row


def _mean(values: pd.Series[float]) -> float:
    """The mean of the known values; NaN for none."""
    known = values.to_numpy()
    n = known.size - int(np.isnan(known).sum())
    return float(np.nansum(known)) / n if n else math.nan


def _loss_step(spec: LossSpec, before: pd.DataFrame, now: pd.DataFrame) -> dict[str, Any]:
    """One stretch of the loss's way, between two frames of the same pairs."""
    names = [name for side in needed_columns(spec) for name in side]
    pairs = pd.DataFrame({column_at(n, when): of[n].to_numpy() for when, of in ((0, before), (1, now)) for n in names})
    finite = finite_pairs(spec, pairs)
    try:
        rows = split_losses(spec, pairs if finite.all() else pairs.loc[finite]) if finite.any() else None
    except DiagError:
        rows = None
    if rows is None:
        return {"loss": math.nan, "loss_chosen_part": math.nan, "loss_rejected_part": math.nan, "loss_pairs": 0}
    parts = {"loss": "loss_to", "loss_chosen_part": "chosen_part", "loss_rejected_part": "rejected_part"}
    if spec.has_pair_beta:
        parts["loss_coefficient_part"] = "coefficient_part"
    return {name: _mean(rows[column]) for name, column in parts.items()} | {"loss_pairs": len(rows)}


def _sums(frame: pd.DataFrame) -> dict[str, Any]:
    """The steps' parts summed along the run; the sum telescopes to the run's own change of the loss."""
    if "loss" not in frame or len(frame) < 2:
        return {}
    if frame["loss"].isna().any() or frame["loss_pairs"].nunique() != 1:
        return {"loss_along_the_run": {"not_applicable": "some step lacks finite log-probs of some pairs"}}
    chosen, rejected = float(frame["loss_chosen_part"].sum()), float(frame["loss_rejected_part"].sum())
    delta = float(frame["loss"].iloc[-1] - frame["loss"].iloc[0])
    known = [name for name in ("loss_coefficient_part",) if name in frame]
    moved = {name.removeprefix("loss_"): float(frame[name].sum()) for name in known}
    parts = {"chosen_part": chosen, "rejected_part": rejected, **moved}
    return {"loss_along_the_run": {"delta": delta, **parts, "residual": delta - sum(parts.values())}}


def turning_points(trajectory: Trajectory, intervals: PairIntervals, least: float = 0.01) -> list[TurningPoint]:
    """Where the chosen answers stopped gaining and lost again while the loss went on falling.

    One entry per perplexity (`quantity`), or, where nothing counts the answers' length, one for the mean chosen
    log-prob (`sum_logp`). The best evaluation is taken; it counts when it lies strictly inside, the loss from there
    to the last evaluation has an interval over pairs that excludes 0 (and is at least `least` in log-perplexity), and
    the preference loss fell over the same stretch. (Taking the best favours a turn a little; the interval is about
    pairs, not about that choice.) A loss that is unknown does not forbid a turn: `loss_from` is then NaN.
    """
    frame, unit = trajectory.steps, trajectory.aligned.unit
    if len(frame) < 3:
        return []

    def sum_change(pairs: pd.DataFrame) -> Interval:
        return intervals.mean(pairs["chosen_sum_logp_0"] - pairs["chosen_sum_logp_1"], pairs["pair_id"])

    if unit is None:
        return _turn(trajectory, "sum_logp", -trajectory.chosen_logp, sum_change, 0.0)
    turns = []
    for name in metrics.PERPLEXITIES:
        column = np.log(frame[f"{name}_chosen"].to_numpy(dtype=np.float64))

        def change(pairs: pd.DataFrame, name: str = name) -> Interval:
            arrays = side_arrays(pairs, "chosen", unit)
            return perplexity_intervals(*arrays.args, arrays.pair_ids, intervals)[name]

        turns += _turn(trajectory, name, column, change, least)
    return turns


def _turn(
    trajectory: Trajectory,
    name: str,
    badness: npt.NDArray[np.float64],
    change: Callable[[pd.DataFrame], Interval],
    least: float,
) -> list[TurningPoint]:
    """The turn of one quantity, given so that lower is better; empty if there is none."""
    frame, last = trajectory.steps, len(badness) - 1
    if not np.isfinite(badness).all():
        return []
    at = int(badness.argmin())
    if at in (0, last):
        return []
    step, end = (int(frame["step"].iloc[i]) for i in (at, last))
    before, after = trajectory.aligned.at(step), trajectory.aligned.at(end)
    if before is None or after is None:
        return []
    worse = change(two_steps(before, after))
    if worse.sign != 1 or worse.value < least:
        return []
    loss = frame["loss"].to_numpy(dtype=np.float64) if "loss" in frame else np.full(last + 1, math.nan)
    if not np.isnan(loss[[at, last]]).any() and not loss[last] < loss[at]:
        return []
    unlog = (lambda v: -v) if name == "sum_logp" else metrics.safe_exp
    start, now = (unlog(float(badness[i])) for i in (at, last))
    return [TurningPoint(name, step, end, start, now, worse, float(loss[at]), float(loss[last]))]
