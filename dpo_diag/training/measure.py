"""What is logged of a set of rows, exact: numerators and denominators of every row, divided once.

TRL averages micro-batch means, each weighing the same, and counts an example that fills the last batch of several
processes twice (trl issue 7010); here every pair (or token) weighs the same, whatever the micro-batches, the
accumulation and the number of processes. The definitions are those of the metric table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dpo_diag.losses import LossSpec
from dpo_diag.records.metric_table import METRICS, TRAINERS_OWN, Value, measure
from dpo_diag.training.batch import ADDED, OF_ROWS, OF_TOKENS, Batch, FloatArray
from dpo_diag.training.gather import Gathered

RESIDUAL_TOLERANCE = 1e-4
"""A loss residual beyond this, relative to losses above 1, is no rounding of float32 sums."""
ROUNDING = 1e-5
"""Two means of the same numbers differ by less than this, relative to values above 1."""
ROUNDING_OF_SUMS = 3e-6
"""And log-probs by this share of a response's |log-prob|: TRL adds a response's tokens in float32, a few hundred of
them to hundreds of nats."""


def batch_metrics(gathered: Gathered, spec: LossSpec | None) -> dict[str, Value]:
    """Every metric of a set of rows that its sums give; what cannot be known is absent.

    Those of `records.metric_table`, and under TRL's names what only a trainer's batch can give: `entropy` over both
    sides, `mean_token_accuracy`. `loss` is the mean over pairs, for SFT over the tokens in the loss, where that is what
    is trained on; `loss_exact` is that mean in any case, `loss_residual` the largest difference to the trainer's number
    over the micro-batches, `loss_on_prompt` the share of an SFT loss's tokens that are not the response's. Packed rows
    have no metrics per response.
    """
    rows, residual = gathered.rows, gathered.residual
    assert rows is not None
    values = measure(rows, spec, [name for name in METRICS if name != "loss"])
    values |= _of_pairs(rows, spec) if rows.has_pairs else _of_sft(rows)
    exact = values.get("loss_exact")
    # A loss to which something unknown is added keeps the trainer's number.
    if exact is not None and not gathered.added and _is_rounding(residual, exact.value):
        values["loss"] = exact
    if math.isnan(residual) and exact is not None and not rows.has_pairs:
        values.setdefault("nll_loss", exact)  # what is trained on is another loss (dft, a router's, the caller's own)
    if not math.isnan(residual):
        values["loss_residual"] = Value(residual, float(len(rows)))
    return values


def _is_rounding(residual: float, loss: float) -> bool:
    return residual <= RESIDUAL_TOLERANCE * max(1.0, abs(loss) if math.isfinite(loss) else 1.0)


def _of_pairs(rows: Batch, spec: LossSpec | None) -> dict[str, Value]:
    policy, values = rows.policy, {}
    losses = None if spec is None else rows.pair_losses(spec)
    if losses is not None:
        values["loss_exact"] = Value(float(losses.mean()), float(len(rows)))
    if "beta" in rows.of_row:
        values["pair_beta"] = Value(float(rows.of_row["beta"].mean()), float(len(rows)))
    chosen, both = policy["n_tokens"][0].sum(), policy["n_tokens"].sum()
    if chosen and "top1_hits" in policy:
        values["mean_token_accuracy"] = Value(float(policy["top1_hits"][0].sum() / chosen), float(chosen))
    if both and "entropy_sum" in policy:
        values["entropy"] = Value(float(policy["entropy_sum"].sum() / both), float(both))
    return values


def _of_sft(rows: Batch) -> dict[str, Value]:
    n, outside = rows.of_row["n_loss"], rows.of_row["n_loss_prompt"]
    tokens, known = float(n.sum()), ~np.isnan(outside)
    if tokens == 0:
        return {}
    columns = {"loss_exact": "loss_sum", "entropy": "loss_entropy", "mean_token_accuracy": "loss_hits"}
    columns |= {name: name for name in rows.of_row if name.startswith(OF_TOKENS)}
    values = {name: Value(float(rows.of_row[column].sum()) / tokens, tokens) for name, column in columns.items()}
    contrast = rows.of_row.get(OF_ROWS, np.empty(0))
    if len(told := contrast[~np.isnan(contrast)]):
        values[f"{OF_TOKENS}{OF_ROWS}"] = Value(float(told.mean()), float(len(told)))
    if ADDED in rows.of_row or len(told):
        values["nll_loss"] = values["loss_exact"]
    if ADDED in rows.of_row:
        values["loss_exact"] = Value(float((rows.of_row["loss_sum"] + rows.of_row[ADDED]).sum()) / tokens, tokens)
    if known.any():
        n_known = float(n[known].sum())
        share = float(outside[known].sum()) / n_known if n_known else math.nan
        values["loss_on_prompt"] = Value(share, n_known)
    return values


def of_trainer(
    theirs: Mapping[str, float], values: Mapping[str, Value], gathered: Gathered, spec: LossSpec | None
) -> dict[str, Value]:
    """The trainer's own means that differ from the set's values beyond rounding, as trl/NAME."""
    rows = gathered.rows
    assert rows is not None
    found = {}
    for name, own in theirs.items():
        if name not in values:
            continue
        value, weight = values[name]
        same = own == value or (math.isnan(own) and math.isnan(value))
        if not same and not abs(own - value) <= _tolerance(name, value, gathered, rows, spec):
            found[f"{TRAINERS_OWN}{name}"] = Value(own, weight)
    return found


def _tolerance(name: str, value: float, gathered: Gathered, rows: Batch, spec: LossSpec | None) -> float:
    tolerance = ROUNDING * max(1.0, abs(value) if math.isfinite(value) else 1.0)
    sums = ROUNDING_OF_SUMS * np.abs(rows.policy["sum_logp"])
    if name == "loss":
        return tolerance + gathered.residual
    if name.startswith("logps/"):
        return tolerance + float(sums.mean())
    if name == "rewards/accuracies":
        return tolerance + float((np.abs(_margins(rows)) <= sums.sum(axis=0)).mean())  # ties but for rounding
    if name.startswith("rewards/") and spec is not None:
        return tolerance + spec.beta * float(sums.mean()) * len(sums)
    return tolerance


def _margins(rows: Batch) -> FloatArray:
    """chosen's log-ratio less rejected's, (pairs,)."""
    name = "loss_logp" if "loss_logp" in rows.policy else "sum_logp"
    ratios = rows.policy[name] - rows.reference.get(name, np.nan)
    return np.asarray(ratios[0] - ratios[1])


def trainer_weights(batch: Batch) -> dict[str, float]:
    """What TRL's own numbers that stay are means over, by name: pairs or tokens."""
    n = float(len(batch)) if batch.has_pairs else float(batch.of_row["n_loss"].sum())
    return dict.fromkeys(("loss", "aux_loss"), n)
