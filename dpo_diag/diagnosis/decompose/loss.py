"""Through which side did the loss move? A two-player Shapley split of any per-pair loss f(a, b), exact.

    chosen part   = 1/2 [f(a1, b0) - f(a0, b0) + f(a1, b1) - f(a0, b1)]
    rejected part = 1/2 [f(a0, b1) - f(a0, b0) + f(a1, b1) - f(a1, b0)]

and their sum is f(a1, b1) - f(a0, b0), pair by pair, whatever f is (DESIGN section 2.4). An SFT term belongs to the
chosen player: it enters as TRL computes it, the mean over the set's chosen tokens. Losses that couple the pairs of a
batch have no such split and are refused by name. Under WPO the detached pair weight moves too: its share stands apart,
`weight_part`, split from the rest by the midpoint rule (mean weight times change of loss, plus mean loss times change
of weight), which is exact as well.

Where a schedule moved the loss's coefficients, each step's own apply: the sides' parts are the means of the splits
under the first and under the last coefficients, and what the coefficients did at pairs that stood still is
`coefficient_part`, the mean over the pairs of both steps; together they are the change, exactly. A beta of each pair's
own (ε-DPO) is such a coefficient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import PAIR_BETA, REFERENCE, column_at, column_of, needed_columns, pair_loss
from dpo_diag.diagnosis.scheduled import loss_at
from dpo_diag.errors import DiagError
from dpo_diag.losses import LOSSES, LossSpec, loss_at_reference, loss_floor, loss_turn
from dpo_diag.records import Run

COLUMNS = ("loss_from", "loss_to", "delta", "chosen_part", "rejected_part", "weight_part", "residual")


def loss_spec(run: Run) -> tuple[LossSpec | None, str | None]:
    """The run's loss and None, or None and why there is none to split."""
    spec = run.info.loss
    if spec is None:
        return None, run.info.loss_reason or "the run does not say which loss it trained with"
    return (None, spec.not_additive) if spec.not_additive else (spec, None)


def loss_section(
    aligned: Aligned, spec: LossSpec | None, why_not: str | None, intervals: PairIntervals
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The explanation's loss section, and the rows behind it."""
    if spec is None:
        return {"not_applicable": why_not}, pd.DataFrame()
    first, last = (loss_at(aligned.run, spec, step, aligned.split) for step in (aligned.from_step, aligned.to_step))
    summary, rows = summarise(first, aligned.pairs, last)
    if "not_applicable" in summary:
        return summary, rows
    summary["interval"] = intervals.mean(rows["delta"], aligned.pairs.loc[rows.index, "pair_id"]).bounds
    history = aligned.run.history
    logged = history.loc[(history["name"] == "loss") & (history["split"] == aligned.split)].set_index("step")["value"]
    start = aligned.rows.reference_step(aligned.split) if aligned.from_step == REFERENCE else aligned.from_step
    for key, step in (("logged_from", start), ("logged_to", aligned.to_step)):
        summary[key] = next(iter(logged[logged.index == step].astype(float)), None)
    return summary, rows


def split_losses(spec: LossSpec, pairs: pd.DataFrame, last: LossSpec | None = None) -> pd.DataFrame:
    """The split of every pair's loss.

    Args:
        spec: an additive loss.
        last: the same loss with the coefficients of the second step, where they are others; then, and where pairs have
            a beta of their own, there is a column `coefficient_part` too.
        pairs: `Aligned.pairs`: `a0 b0 a1 b1` (nats) and, where the loss needs them, `chosen_n_tokens_{0|1}`,
            `rejected_n_tokens_{0|1}`, `chosen_sum_logp_{0|1}`, `chosen_weight_{0|1}`, `chosen_beta_{0|1}`.

    Returns:
        One row per pair in the order of `pairs`: `COLUMNS`. The means over rows are the run's. Empty in, empty out.
        A pair with an infinite or unknown input has NaN in every column (see `finite_pairs`).

    Raises:
        DiagError: a coupled loss, or a quantity that this loss needs is unknown.
    """
    if spec.not_additive:
        raise DiagError("this loss has no per-pair value", got=spec.not_additive)
    if spec.has_pair_beta or (last is not None and last != spec):
        one, two = _split(spec, pairs, 0), _split(last or spec, pairs, 1)
        rows = (one + two) / 2
        rows["coefficient_part"] = (two["loss_from"] - one["loss_from"] + two["loss_to"] - one["loss_to"]) / 2
        rows["loss_from"], rows["loss_to"] = one["loss_from"], two["loss_to"]
        rows["delta"] = rows["loss_to"] - rows["loss_from"]
        parts = rows[["chosen_part", "rejected_part", "weight_part", "coefficient_part"]].sum(axis=1, skipna=False)
        rows["residual"] = rows["delta"] - parts
        return rows
    return _split(spec, pairs)


def _split(spec: LossSpec, pairs: pd.DataFrame, beta_at: int | None = None) -> pd.DataFrame:
    """The split under one set of coefficients, with the pairs' own betas of one step."""
    unweighted = replace(spec, use_weighting=False)
    with np.errstate(invalid="ignore"):
        f00, f10, f01, f11 = (pair_loss(unweighted, pairs, i, j, beta_at) for i, j in ((0, 0), (1, 0), (0, 1), (1, 1)))
        chosen = 0.5 * ((f10 - f00) + (f11 - f01))
        rejected = 0.5 * ((f01 - f00) + (f11 - f10))
        weight_part = np.zeros_like(chosen)
        if spec.use_weighting:
            w0, w1 = (column_of(pairs, "chosen_weight", when) for when in (0, 1))
            weight_part = 0.5 * (f00 + f11) * (w1 - w0)
            chosen, rejected = 0.5 * (w0 + w1) * chosen, 0.5 * (w0 + w1) * rejected
            f00, f11 = w0 * f00, w1 * f11
        delta = f11 - f00
        residual = delta - (chosen + rejected + weight_part)
    return pd.DataFrame(
        dict(zip(COLUMNS, (f00, f11, delta, chosen, rejected, weight_part, residual), strict=True)), index=pairs.index
    )


def finite_pairs(spec: LossSpec, pairs: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Pairs whose loss can be split: all that the loss looks at is known and finite (mask over rows)."""
    names = [column_at(name, when) for side in needed_columns(spec) for name in side for when in (0, 1)]
    mask: npt.NDArray[np.bool_] = np.isfinite(pairs.reindex(columns=names).to_numpy(dtype=np.float64)).all(axis=1)
    return mask


def summarise(spec: LossSpec, pairs: pd.DataFrame, last: LossSpec | None = None) -> tuple[dict[str, Any], pd.DataFrame]:
    """The run's loss split (means over pairs) and the rows behind it; or {"not_applicable": reason} and no rows."""
    empty = pd.DataFrame(columns=list(COLUMNS), dtype="float64")
    if not len(pairs):
        return {"not_applicable": "no pair is recorded at both steps"}, empty
    finite = finite_pairs(spec, pairs)
    if not finite.any():
        return {"not_applicable": _why_none(spec, pairs)}, empty
    used = pairs.loc[finite]
    try:
        rows = split_losses(spec, used, last)
    except DiagError as error:
        return {"not_applicable": str(error)}, empty
    values = {name: float(rows[name].mean()) for name in COLUMNS[:-1]}
    moved = float(rows["coefficient_part"].mean()) if "coefficient_part" in rows else 0.0
    parts = values["chosen_part"] + values["rejected_part"] + values["weight_part"] + moved
    result: dict[str, Any] = {
        "from": values["loss_from"],
        "to": values["loss_to"],
        "delta": values["loss_to"] - values["loss_from"],
        "chosen_part": values["chosen_part"],
        "rejected_part": values["rejected_part"],
        "residual": values["loss_to"] - values["loss_from"] - parts,
        "max_pair_residual": float(rows["residual"].abs().max()),
        "n_pairs": int(finite.sum()),
        "types": list(spec.types),
        "beta": spec.beta,
        "at_reference": loss_at_reference(spec) if spec.needs_reference else None,
        "floor": loss_floor(spec),
    }
    if "coefficient_part" in rows:
        then = last or spec
        result |= {"coefficient_part": moved, "coefficients": coefficients_moved(spec, then), "beta": then.beta}
    if spec.has_pair_beta:
        result["pair_beta"] = [float(column_of(used, PAIR_BETA, when).mean()) for when in (0, 1)]
    if (turn := loss_turn(spec)) is not None:
        result["least_at_margin"] = turn
    if spec.use_weighting:
        result["weight_part"] = values["weight_part"]
    left_out = int((~finite).sum())
    if left_out:
        result["pairs_left_out"] = left_out
        result["pairs_left_out_reason"] = "a log-prob of theirs is infinite, NaN or unknown"
        result["left_out_pair_ids"] = [str(p) for p in pairs.loc[~finite, "pair_id"].head(20)]
    return result, rows


def coefficients_moved(first: LossSpec, last: LossSpec) -> dict[str, list[float]]:
    """Name -> value at the first and at the last step, of those that differ."""
    names = ["beta", *first.types, *(own for kind in first.types for own in LOSSES[kind].coefficients)]
    both = {name: [first.value_of(name), last.value_of(name)] for name in names if first.types.count(name) < 2}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _why_none(spec: LossSpec, pairs: pd.DataFrame) -> str:
    if spec.needs_reference and bool(pairs[["a0", "b0", "a1", "b1"]].isna().all(axis=None)):
        if spec.ld_alpha is not None:
            return "the log-probs that ld_alpha made (loss_logp) or the reference's are not recorded"
        return "the records hold no reference log-probs"
    if spec.has_pair_beta and pairs.reindex(columns=[column_at(PAIR_BETA, 1)]).isna().all(axis=None):
        return "the pairs' own betas are not recorded: only the training knows them"
    return "no pair has finite log-probs and all that this loss needs (token counts, weights) at both steps"
