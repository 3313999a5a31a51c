"""Logged means that cannot be what their names say, what they may be instead, and which means cannot be used for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dpo_diag.diagnosis.checks.shared.logged import Logged, Series
from dpo_diag.records.metric_table import metric_of
from dpo_diag.stats import FloatArray
from dpo_diag.thresholds import Thresholds

if TYPE_CHECKING:
    from dpo_diag.diagnosis.checks.shared.context import Start

Cause = Literal["sum", "percent", "count", "negated", "unknown"]
SCALED = ("loss", "preference_loss", "nll_loss", "rewards/", "logps/", "mean_logps/", "ce/", "ppl_", "ref_logps/")
"""Means of pairs: where one of a split is a sum, so are they all."""
PERCENT = 100.0
ACCURACY = "rewards/accuracies"
READS = (
    "implausible_rounding", "implausible_loss_rounding", "implausible_most_summed", "implausible_most_exact",
    "implausible_least_percent", "implausible_near_start",
)  # fmt: skip
"""Thresholds that this module reads."""


@dataclass(frozen=True)
class Implausible:
    """A metric of a split out of its bounds.

    Attributes:
        value, step: the furthest one.
        bound: the bound that it passes.
        rows, of: rows beyond it, and all.
        cause: what the numbers most likely are; `factor` for a sum.
        withheld: metrics of the split that cannot be used; a name's end may be left open.
    """

    split: str
    name: str
    value: float
    step: float
    bound: float
    rows: int
    of: int
    cause: Cause
    factor: int | None
    withheld: tuple[str, ...]

    def withholds(self, split: str, name: str) -> bool:
        """Whether a check must do without this metric."""
        return split == self.split and name.startswith(self.withheld)


def find_implausible(logged: Logged, start: Start, t: Thresholds) -> list[Implausible]:
    """Every logged metric that leaves its bounds, with its likely cause."""
    found = []
    names = logged.rows[
        ~logged.rows["derived"].eq(True).fillna(False).astype(bool)
    ]  # null where the source does not say
    for split, name in sorted(set(zip(names["split"], names["name"], strict=True))):
        metric = metric_of(name)
        if metric is None:
            continue
        low, high = metric.limits
        if name == "loss":
            low = start.floor
        series = logged.every(name, split)
        if series is None or series.name != name or (low is None and high is None):
            continue
        one = _beyond(logged, series.finite, low, high, start, t)
        if one is not None:
            found.append(one)
    return found


def _beyond(
    logged: Logged, series: Series, low: float | None, high: float | None, start: Start, t: Thresholds
) -> Implausible | None:
    values, slack = series.values, t["implausible_rounding"]
    below = values < low - slack if low is not None else np.zeros(len(values), dtype=bool)
    above = values > high + slack if high is not None else np.zeros(len(values), dtype=bool)
    outside = below | above
    if not outside.any():
        return None
    bound = low if below.any() else high
    assert bound is not None
    worst = int(np.abs(values - bound).argmax())
    cause, factor = _cause(logged, series, bound, bool(above.any()), start, t)
    # An accuracy above 1 that nothing explains may stand beside other sums; any other metric stands for itself.
    of_all = cause == "sum" or (cause == "unknown" and series.name == ACCURACY and bool(above.any()))
    withheld = SCALED if of_all else (series.name,)
    return Implausible(
        series.split, series.name, float(values[worst]), float(series.steps[worst]), bound, int(outside.sum()),
        len(values), cause, factor, withheld,
    )  # fmt: skip


def _cause(
    logged: Logged, series: Series, bound: float, above: bool, start: Start, t: Thresholds
) -> tuple[Cause, int | None]:
    values = series.values
    if series.name.startswith(("logps/", "mean_logps/")) and (values > 0).all():
        return "negated", None
    if not above or bound != 1.0:
        return "unknown", None
    factor = _summed_over(logged, series.split, float(values.max()), start, t)
    if factor is not None and factor > 1:
        return "sum", factor
    if (values == np.round(values)).all() and values.max() < PERCENT:
        return "count", None
    if float(np.median(values)) >= t["implausible_least_percent"] and values.max() <= PERCENT:
        return "percent", None
    return "unknown" if factor is None else "count", None


def _summed_over(logged: Logged, split: str, largest: float, start: Start, t: Thresholds) -> int | None:
    """Over how many rows' means the split's numbers are sums, by its loss: 1 where the loss is a mean, None where it
    does not tell.

    The mean sigmoid loss is never below softplus(-mean margin), and near its start it lies close above it. The number
    sought is the largest one for which that holds of loss and margin divided by it.
    """
    if not math.isfinite(start.value) or start.value <= 0:
        return None
    most, near = int(t["implausible_most_summed"]), t["implausible_near_start"]
    least = math.ceil(largest - t["implausible_rounding"])
    rows = logged.raw_together(("loss", "rewards/margins"), split)
    if rows is None:
        loss = logged.every("loss", split)
        if loss is None or not len(loss.finite):
            return None
        # A first row lies at its start or below it, by what was learned.
        k = math.ceil(float(loss.finite.values[0]) / start.value - near)
        return k if least <= k <= most or k == 1 else None
    losses, margins = rows
    fits = [k for k in range(1, most + 1) if _gap(losses, margins, k).min() >= -t["implausible_loss_rounding"]]
    k = max(fits, default=0)
    if k == 0 or abs(float(_gap(losses, margins, k)[0])) > near * start.value:
        return None
    return k if k == 1 or k >= least else None


def multiple_of_start(first: float, start: float, t: Thresholds) -> int | None:
    """Over how many micro-batches or processes a first loss seems to be summed: k >= 2 where it is near k starts.

    >>> t = {"reference_multiple_share": 0.1, "implausible_most_summed": 64}
    >>> [multiple_of_start(loss, 0.6931, t) for loss in (2.7726, 4.14, 0.74, 2.4)]
    [4, 6, None, None]
    """
    if start <= 0 or not math.isfinite(first):
        return None
    k = round(first / start)
    near = abs(first - k * start) <= t["reference_multiple_share"] * start
    return k if 2 <= k <= t["implausible_most_summed"] and near else None


def _gap(losses: FloatArray, margins: FloatArray, k: int) -> FloatArray:
    gap: FloatArray = losses / k - np.logaddexp(0.0, -margins / k)
    return gap


def in_words(one: Implausible, first_loss: float | None, t: Thresholds) -> str:
    """What is implausible and what it most likely is, in a clause."""
    side = "most" if one.value > one.bound else "least"
    beyond = f"{one.name} of {one.split} is {one.value:.4g}, and {_kind(one.name)} is at {side} {one.bound:.4g}"
    if one.cause == "sum":
        k = one.factor or 1
        if k > t["implausible_most_exact"]:
            return f"{beyond}: the numbers are sums over about {k} micro-batches or processes, not means"
        loss = f", and the first loss {first_loss:.4g} = {k} x {first_loss / k:.4g}" if first_loss is not None else ""
        return (
            f"{beyond}: the numbers are sums over {k} micro-batches or processes, not means "
            f"({one.value:.4g} = {k} x {one.value / k:.4g}{loss})"
        )
    if one.name == "loss":
        return f"{beyond}, unless its loss has no lower bound (--loss NAME says which it is)"
    causes: Mapping[Cause, str] = {
        "percent": ": a percentage, not a share", "count": ": a count of pairs, not a share",
        "negated": ": its sign is turned, a negative log-prob under this name",
    }  # fmt: skip
    return beyond + causes.get(one.cause, "")


def _kind(name: str) -> str:
    metric = metric_of(name)
    if metric is not None and metric.unit == "share":
        return "a share"
    kinds = {"loss": "this loss", "ppl_": "a perplexity", "ce/": "a cross-entropy", "entropy": "an entropy",
             "logps/": "a log-prob", "mean_logps/": "a log-prob", "greedy_logp": "a log-prob"}  # fmt: skip
    return next((kind for start, kind in kinds.items() if name.startswith(start)), "it")


def evidence_of(one: Implausible) -> dict[str, Any]:
    """A row of DVG028's evidence."""
    return {
        "split": one.split, "name": one.name, "value": one.value, "step": one.step, "bound": one.bound,
        "rows_beyond": one.rows, "rows": one.of, "cause": one.cause, "factor": one.factor,
    }  # fmt: skip
