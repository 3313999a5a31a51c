"""THE METRIC TABLE: every quantity that is logged, derived, compared or shown, one entry each.

Training, scoring, importing, the gate, sweeps and reports read it; none lists metrics of its own. A metric that has a
formula gets its value from the pair records' sums and counts, exactly, whatever the batch size and the number of
processes (`measure`); the others are a trainer's own numbers. Built-in entries: `metric_kinds`; a plugin adds its own
with `METRICS.add(name, Metric(...))` and sees it measured in training and scoring, and shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.losses import LossSpec
from dpo_diag.records.schemas import SIDES
from dpo_diag.registry import Registry

FloatArray = npt.NDArray[np.float64]
COEFFICIENT = "coefficient/"
"""Before the name of a coefficient of the loss that a schedule moves: its value in a logged window or evaluation."""
TRAINERS_OWN = "trl/"
"""Before the name of a trainer's own mean, where the plain name holds the set's and they differ beyond rounding."""
Columns = Mapping[str, FloatArray]
Better = Literal["higher", "lower", "neither"]


class Value(NamedTuple):
    """A metric's value, and how many responses, pairs, tokens or bytes it is a mean over."""

    value: float
    weight: float


class Sums(Protocol):
    """Rows of one set at one step, in the order of `sides`; a training batch is one.

    policy, reference: column -> (2, rows): sum_logp, n_tokens, and where they are known n_bytes, top1_hits, top5_hits,
    entropy_sum, greedy_logp_sum, kl_reverse_sum, kl_forward_sum. `reference` is empty where there is none. `packed`: a
    row may hold several responses.
    """

    @property
    def sides(self) -> tuple[str, ...]: ...
    @property
    def policy(self) -> Columns: ...
    @property
    def reference(self) -> Columns: ...
    @property
    def packed(self) -> bool: ...


@dataclass(frozen=True)
class Metric:
    """One quantity.

    Attributes:
        label: what people call it; "{side}" stands for chosen, rejected, response or prompt.
        unit: nats, nats/token, share, ratio, ...
        better: whether a higher or a lower value is wanted, where one can say so.
        description: what it is a mean over, of what.
        sides: it stands once per side, as NAME/SIDE.
        of_side: its value from one side's columns, (rows,) each, rows of no tokens left out; None where a column that
            it needs is not known.
        of_each: each pair's value from both sides and the loss, (pairs,), NaN where it is unknown; its own is the mean
            of the known ones. None likewise.
        per_response: every response weighs the same, so that packed rows have none.
        stand_ins: narrower quantities that answer the same question where this one was not logged, best first.
        bounds: what it can be at all, both ends included, None where it has no end; a share lies in 0 to 1.
    """

    label: str
    unit: str
    better: Better
    description: str
    sides: bool = False
    of_side: Callable[[Columns], Value | None] | None = None
    of_each: Callable[[Sums, LossSpec | None], FloatArray | None] | None = None
    per_response: bool = False
    stand_ins: tuple[str, ...] = ()
    bounds: tuple[float | None, float | None] | None = None

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Its bounds, those of a share where it is one."""
        if self.bounds is not None:
            return self.bounds
        return (0.0, 1.0) if self.unit == "share" else (None, None)


METRICS: Registry[Metric] = Registry("metric", "dpo_diag.records.metric_kinds")
"""name -> metric; the name is TRL's where TRL has it, without a train/ or eval_ prefix and without a side."""


def metric_of(name: str) -> Metric | None:
    """The metric behind a history name (`ce/chosen`, `score/accuracy`); None for a name that no table knows."""
    if name in METRICS:
        return METRICS[name]
    base = name.split("/", 1)[0]
    return METRICS[base] if base in METRICS and METRICS[base].sides else None


ALL_SIDES = (*SIDES, "response", "prompt")
"""Sides of a pair's answers, and the two parts of a supervised example."""


def side_of(name: str) -> str | None:
    """The side in a history name: chosen of `ce/chosen`; None for a metric of whole pairs.

    >>> [side_of(name) for name in ("ce/chosen", "ppl_token/prompt", "rewards/margins", "loss")]
    ['chosen', 'prompt', None, None]
    """
    base, _, side = name.partition("/")
    return side if side in ALL_SIDES and name not in METRICS and base in METRICS else None


def label_of(name: str) -> str:
    """What people call a history name; the name itself where no table knows it.

    >>> label_of("ppl_token/chosen"), label_of("rewards/accuracies"), label_of("score/execution_accuracy")
    ('chosen ppl_token', 'reward accuracy', 'execution accuracy')
    """
    known = metric_of(name)
    if known is None:
        return name
    rest = name.partition("/")[2]
    return known.label.format(side=side_of(name) or "", name=rest.replace("_", " "))


def measure(rows: Sums, spec: LossSpec | None = None, names: Iterable[str] | None = None) -> dict[str, Value]:
    """Every metric that the rows' sums give, by history name: the same for a training batch, a scored checkpoint and
    stored pairs. What cannot be known is absent. {} for no rows.

    Args:
        spec: the loss, for metrics that need beta or its formula; None where it is not known.
        names: metrics without their side; None for all.
    """
    chosen = list(METRICS) if names is None else list(names)
    values: dict[str, Value] = {}
    if rows.policy["sum_logp"].shape[-1] == 0:
        return values
    for s, side in enumerate(rows.sides):
        scored = rows.policy["n_tokens"][s] > 0  # a response cut to nothing has no cross-entropy
        columns = {name: column[s][scored] for name, column in rows.policy.items()}
        for name in chosen:
            metric = METRICS[name]
            if metric.of_side is None or not scored.any() or (metric.per_response and rows.packed):
                continue
            if (value := metric.of_side(columns)) is not None:
                values[f"{name}/{side}"] = value
    for name in chosen:
        each = of_each_pair(rows, name, spec)
        if each is not None and (known := each[~np.isnan(each)]).size:
            values[name] = Value(float(known.mean()), float(known.size))
    return values


def of_each_pair(rows: Sums, name: str, spec: LossSpec | None) -> FloatArray | None:
    """Each pair's value of a metric that is their mean, (pairs,), NaN where unknown; None where it has none."""
    metric = metric_of(name)
    if metric is None or metric.of_each is None or tuple(rows.sides) != SIDES:
        return None
    return metric.of_each(rows, spec)


@dataclass(frozen=True)
class PairSums:
    """Sums made from pair records; see `Sums`."""

    policy: Columns
    reference: Columns = field(default_factory=dict)
    sides: tuple[str, ...] = SIDES
    packed: bool = False


_SUMMED = (
    "sum_logp", "n_tokens", "n_bytes", "entropy_sum", "greedy_logp_sum", "kl_reverse_sum", "kl_forward_sum",
)  # fmt: skip
_SHARES = {"top1_hits": "top1", "top5_hits": "top5"}


def _by_side(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """One row per pair, by pair_id, of each side."""
    sides = rows.groupby("side", observed=True)
    return {str(side): of.drop_duplicates("pair_id").set_index("pair_id") for side, of in sides}


def pair_sums(pairs: pd.DataFrame, reference: pd.DataFrame | None = None) -> PairSums:
    """Rows of the pairs table (one split, one step, one role) as sums; pairs that miss a side are left out.

    Args:
        reference: the reference's rows, by pair_id and side; None or empty where there is none. Pairs without one are
            left out of nothing: their reference is NaN.
    """
    wide = _by_side(pairs)
    if set(SIDES) - set(wide):
        return PairSums({"sum_logp": np.empty((2, 0)), "n_tokens": np.empty((2, 0))})
    both = wide["chosen"].index.intersection(wide["rejected"].index)

    def column(of: Mapping[str, pd.DataFrame], name: str) -> FloatArray:
        return np.stack([of[side][name].reindex(both).to_numpy(dtype=np.float64) for side in SIDES])

    policy = {name: column(wide, name) for name in _SUMMED if name in pairs}
    policy |= {hits: column(wide, share) * policy["n_tokens"] for hits, share in _SHARES.items() if share in pairs}
    known = {name: values for name, values in policy.items() if name == "sum_logp" or not np.isnan(values).all()}
    if reference is None or reference.empty:
        return PairSums(known)
    of = _by_side(reference)
    if set(SIDES) - set(of):
        return PairSums(known)
    return PairSums(known, {"sum_logp": column(of, "sum_logp")})
