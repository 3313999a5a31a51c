"""The whole run, evaluation by evaluation, on the same pairs: so that the steps' parts telescope to the run's change,
and the place where loss and perplexity part ways can be found without being asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.aligned import REFERENCE, VALUES, Selection
from dpo_diag.diagnosis.decompose import loss_split, perplexity_split
from dpo_diag.diagnosis.decompose.measure import COUNTS, SideArrays
from dpo_diag.diagnosis.uncertainty import mean_interval, perplexity_intervals
from dpo_diag.losses import LossSpec
from dpo_diag.records import Run, metrics
from dpo_diag.records.reader import join_reference

_PER_TOKEN = {"entropy": "entropy_sum", "greedy_logp": "greedy_logp_sum"}


@dataclass(frozen=True)
class Trajectory:
    """`steps`: one row per evaluation (see `follow`); `summary`: sums over the run; `values`: step -> aligned rows."""

    steps: pd.DataFrame
    summary: dict[str, Any]
    values: dict[int, pd.DataFrame]


def _step_values(run: Run, selection: Selection, uses_loss_logp: bool) -> tuple[dict[int, pd.DataFrame], list[int]]:
    """step -> wide rows over exactly the aligned pairs, in their order; and the steps that lack some of them."""
    first = -math.inf if selection.from_step == REFERENCE else int(selection.from_step)
    steps = [s for s in selection.steps if first <= s <= selection.to_step]
    rows = run.read("pairs", splits=[selection.split])
    rows = rows.drop_duplicates(["step", "role", "pair_id", "side"], keep="last")
    base = run.meta.get("reference")
    if isinstance(base, dict) and base.get("step") is not None and not (rows["role"] == "ref").any():
        rows = pd.concat([rows, rows.loc[rows["step"] == int(base["step"])].assign(role="ref")], ignore_index=True)
    joined = join_reference(rows)
    order = pd.Index(selection.pairs["pair_id"])
    names = ("loss_logp", "ref_loss_logp") if uses_loss_logp else ("sum_logp", "ref_sum_logp")
    found: dict[int, pd.DataFrame] = {}
    for step, group in joined.loc[joined["step"].isin(steps)].groupby("step"):
        wide: dict[str, Any] = {}
        complete = True
        for side, letter in zip(selection.sides, "ab", strict=False):
            own = group.loc[group["side"] == side].set_index("pair_id").reindex(order)
            complete &= not bool(own["step"].isna().any())
            for value in VALUES:
                wide[f"{side}_{value}"] = own[value].to_numpy(dtype=np.float64)
            wide[letter] = (own[names[0]].astype("float64") - own[names[1]].astype("float64")).to_numpy()
        if complete:
            found[int(str(step))] = pd.DataFrame(wide).assign(pair_id=order)
    return found, [s for s in steps if s not in found]


def _between(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Two steps' rows as `Selection.pairs` has them."""
    parts = [
        frame.rename(columns={c: f"{c}{when}" if c in ("a", "b") else f"{c}_{when}" for c in frame if c != "pair_id"})
        for when, frame in ((0, before), (1, after))
    ]
    joined = pd.concat([parts[0], parts[1].drop(columns="pair_id")], axis=1)
    for name in ("a0", "b0", "a1", "b1"):
        if name not in joined:
            joined[name] = math.nan
    return joined


def follow(run: Run, selection: Selection, spec: LossSpec | None, unit: str | None) -> Trajectory:
    """Every evaluation between the two steps on the aligned pairs.

    Returns: `Trajectory.steps` with `step`, `loss`, `loss_chosen_part`, `loss_rejected_part` (since the row before),
        `{perplexity}_{side}` (in `unit`s), `a_mean`, `b_mean`, `both_fell` (share of pairs, against the first row),
        `top1_{side}`, `entropy_{side}`, `greedy_logp_{side}` (nats per token); what is unknown is NaN. Steps that lack
        some of the pairs are left out and listed in the summary: sums over different pairs would not telescope.
    """
    values, missing = _step_values(run, selection, bool(spec is not None and spec.ld_alpha is not None))
    steps = sorted(values)
    rows: list[dict[str, Any]] = []
    for i, step in enumerate(steps):
        now = values[step]
        row: dict[str, Any] = {"step": step, **_levels(now, selection.sides, unit)}
        if spec is not None:
            row |= _loss_step(spec, values[steps[i - 1]] if i else now, now)
        if {"chosen", "rejected"} <= set(selection.sides):
            start = values[steps[0]]
            change = [now[f"{s}_sum_logp"] - start[f"{s}_sum_logp"] for s in ("chosen", "rejected")]
            row["both_fell"] = metrics.quadrants(change[0], change[1]).both_fell
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else ["step"])
    return Trajectory(frame, {"steps": steps, "steps_left_out": missing, **_sums(frame)}, values)


def _levels(now: pd.DataFrame, sides: tuple[str, ...], unit: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for letter in "ab":
        row[f"{letter}_mean"] = float(now[letter].mean()) if letter in now else math.nan
    for side in sides:
        tokens = now[f"{side}_n_tokens"]
        total = float(tokens.sum())
        hits = float((now[f"{side}_top1"] * tokens).sum(skipna=False))
        row[f"top1_{side}"] = hits / total if total else math.nan
        for name, column in _PER_TOKEN.items():
            row[f"{name}_{side}"] = float(now[f"{side}_{column}"].sum(skipna=False)) / total if total else math.nan
        if unit is None:
            continue
        s, n = now[f"{side}_sum_logp"].to_numpy(), now[f"{side}_{COUNTS[unit]}"].to_numpy()
        keep = np.isfinite(s) & (n > 0)
        for name, log_ppl in metrics.PERPLEXITIES.items():
            row[f"{name}_{side}"] = metrics.safe_exp(log_ppl(s[keep], n[keep]))
    return row


def _loss_step(spec: LossSpec, before: pd.DataFrame, now: pd.DataFrame) -> dict[str, Any]:
    summary, _ = loss_split.summarise(spec, _between(before, now))
    if "not_applicable" in summary:
        return {"loss": math.nan, "loss_chosen_part": math.nan, "loss_rejected_part": math.nan, "loss_pairs": 0}
    return {
        "loss": summary["to"],
        "loss_chosen_part": summary["chosen_part"],
        "loss_rejected_part": summary["rejected_part"],
        "loss_pairs": summary["n_pairs"],
    }


def _sums(frame: pd.DataFrame) -> dict[str, Any]:
    """The steps' parts summed along the run; the sum telescopes to the run's own change of the loss."""
    if "loss" not in frame or len(frame) < 2:
        return {}
    if frame["loss"].isna().any() or frame["loss_pairs"].nunique() != 1:
        return {"loss_along_the_run": {"not_applicable": "some step lacks finite log-probs of some pairs"}}
    chosen, rejected = float(frame["loss_chosen_part"].sum()), float(frame["loss_rejected_part"].sum())
    delta = float(frame["loss"].iloc[-1] - frame["loss"].iloc[0])
    return {
        "loss_along_the_run": {
            "delta": delta, "chosen_part": chosen, "rejected_part": rejected, "residual": delta - chosen - rejected,
        }
    }  # fmt: skip


def turning_points(trajectory: Trajectory, unit: str | None, least: float = 0.01) -> list[dict[str, Any]]:
    """Where the chosen answers stopped gaining and lost again while the loss went on falling.

    One entry per perplexity (`quantity`), or, where nothing counts the answers' length, one for the mean chosen
    log-prob (`sum_logp`). The best evaluation is taken; it counts when it lies strictly inside, the loss from there
    to the last evaluation has an interval over pairs that excludes 0 (and is at least `least` in log-perplexity), and
    the preference loss fell over the same stretch. (Taking the best favours a turn a little; the interval is about
    pairs, not about that choice.) A loss that is unknown does not forbid a turn: `loss_from` is then NaN.
    """
    frame = trajectory.steps
    if len(frame) < 3:
        return []
    if unit is None:
        return _turn(trajectory, "sum_logp", -_mean_sums(trajectory), _sum_change, 0.0)
    found = []
    for name in metrics.PERPLEXITIES:
        column = np.log(frame[f"{name}_chosen"].to_numpy(dtype=np.float64))

        def change(before: pd.DataFrame, after: pd.DataFrame, name: str = name) -> tuple[float, list[float] | None]:
            arrays = _chosen_arrays(before, after, unit)
            return perplexity_split.split_perplexity(*arrays.args)[name]["dlog"], perplexity_intervals(arrays)[name]

        found += _turn(trajectory, name, column, change, least)
    return found


def _mean_sums(trajectory: Trajectory) -> npt.NDArray[np.float64]:
    return np.array([trajectory.values[s]["chosen_sum_logp"].mean() for s in trajectory.summary["steps"]])


def _sum_change(before: pd.DataFrame, after: pd.DataFrame) -> tuple[float, list[float] | None]:
    fall = (before["chosen_sum_logp"] - after["chosen_sum_logp"]).to_numpy(dtype=np.float64)
    return float(fall.mean()), mean_interval(fall)


def _turn(
    trajectory: Trajectory,
    name: str,
    badness: npt.NDArray[np.float64],
    change: Callable[[pd.DataFrame, pd.DataFrame], tuple[float, list[float] | None]],
    least: float,
) -> list[dict[str, Any]]:
    """The turn of one quantity, given so that lower is better; empty if there is none."""
    frame, last = trajectory.steps, len(badness) - 1
    if not np.isfinite(badness).all():
        return []
    at = int(badness.argmin())
    if at in (0, last):
        return []
    step, end = (int(frame["step"].iloc[i]) for i in (at, last))
    worse, bounds = change(trajectory.values[step], trajectory.values[end])
    if worse <= 0.0 or worse < least or (bounds is not None and bounds[0] <= 0.0):
        return []
    loss = frame["loss"].to_numpy(dtype=np.float64) if "loss" in frame else np.full(last + 1, math.nan)
    if not np.isnan(loss[[at, last]]).any() and not loss[last] < loss[at]:
        return []
    unlog = (lambda v: -v) if name == "sum_logp" else metrics.safe_exp
    return [
        {
            "quantity": name, "step": step, "to_step": end, "from": unlog(float(badness[at])),
            "to": unlog(float(badness[last])), "worse_by": worse, "interval": bounds,
            "loss_from": float(loss[at]), "loss_to": float(loss[last]),
        }
    ]  # fmt: skip


def _chosen_arrays(before: pd.DataFrame, after: pd.DataFrame, unit: str) -> SideArrays:
    s0, s1 = before["chosen_sum_logp"].to_numpy(), after["chosen_sum_logp"].to_numpy()
    n0, n1 = before[f"chosen_{COUNTS[unit]}"].to_numpy(), after[f"chosen_{COUNTS[unit]}"].to_numpy()
    keep = np.isfinite(s0) & np.isfinite(s1) & (n0 > 0) & (n1 > 0)
    whole = SideArrays("chosen", unit, keep, s0, n0, s1, n1, {})
    return replace(whole, sum_from=s0[keep], n_from=n0[keep], sum_to=s1[keep], n_to=n1[keep])
