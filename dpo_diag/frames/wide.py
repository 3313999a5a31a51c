"""Long rows as wide ones: what each pair did at each step, and what was logged at each.

Nothing is computed here that another place computes: the log-ratios are `SplitRows`', cross-entropy is
`records.metrics.ce`, the loss `pair_rows.pair_loss`; `explain` takes the same numbers from the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import union_categoricals

from dpo_diag.diagnosis.aligned import COUNTS, unit_that_covers
from dpo_diag.diagnosis.decompose.loss import loss_spec
from dpo_diag.diagnosis.pair_rows import FloatArray, PairRows, pair_loss
from dpo_diag.diagnosis.split_rows import SplitRows, read_splits
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.records import Run, metrics
from dpo_diag.records.metric_table import METRICS, metric_of
from dpo_diag.records.schemas import PAIRS, SIDES, Column, Table
from dpo_diag.records.tables import to_frame

_OF_PAIRS = {c.name: c for c in PAIRS.columns}


def _by_side(column: Column) -> list[Column]:
    return [replace(column, name=f"{side}_{column.name}") for side in SIDES]


PAIRS_WIDE = Table(
    "pairs_wide",
    ("step", "split", "pair_id"),
    (
        *(_OF_PAIRS[name] for name in PAIRS.key if name not in ("role", "side")),
        *_by_side(Column("sum_logp", pa.float64(), "sum over the response's tokens of log p(token)", unit="nats")),
        *_by_side(Column("count", pa.float64(), "length of the response in `unit`s", unit="`unit`s")),
        *_by_side(
            Column("ce", pa.float64(), "cross-entropy of the response: -sum_logp / count", unit="nats per `unit`")
        ),
        *_by_side(Column("ppl", pa.float64(), "perplexity of the response: exp(ce)", unit="ratio")),
        Column("a", pa.float64(), "log-ratio of chosen to the reference, as the loss sees it", unit="nats"),
        Column("b", pa.float64(), "log-ratio of rejected to the reference, as the loss sees it", unit="nats"),
        Column(
            "margin",
            pa.float64(),
            "beta (a - b): how much more the policy prefers chosen than the reference does",
            unit="nats",
        ),
        Column("loss", pa.float64(), "loss of the pair; their mean over a step is the step's loss", unit="nats"),
        Column("unit", _OF_PAIRS["split"].type, "token | byte: what the responses of the split are counted in"),
    ),
)
"""The columns of `Run.pairs_wide`."""


def pairs_wide(
    run: Run,
    columns: Sequence[str] | None = None,
    steps: Iterable[int] | None = None,
    splits: Iterable[str] | None = None,
) -> pd.DataFrame:
    """See `frames.Run.pairs_wide`."""
    names = PAIRS_WIDE.names if columns is None else list(columns)
    if unknown := [name for name in names if name not in PAIRS_WIDE.names]:
        raise DiagError(f"unknown columns {unknown}", where="pairs_wide", expected=f"some of {PAIRS_WIDE.names}")
    wanted = None if steps is None else sorted({int(s) for s in steps})
    found = read_splits(run, wanted, splits)
    rows = PairRows(run)
    frames = [_of_split(rows, found[name], wanted) for name in run.preferred(found) if found[name].steps.size]
    return stacked([frame for frame in frames if len(frame)] or [_nothing()])[names]


def _nothing() -> pd.DataFrame:
    return to_frame(PAIRS_WIDE.schema.empty_table(), keep_categories=True)


def _of_split(rows: PairRows, split: SplitRows, wanted: list[int] | None) -> pd.DataFrame:
    sides = split.sides(slice(0, split.pair.size))
    step, pair, values = split.all_steps(sides, rows.uses_loss_logp)
    if wanted is not None and not (keep := np.isin(step, wanted)).all():
        step, pair, values = step[keep], pair[keep], values.loc[keep].reset_index(drop=True)
    counts = {unit: [f"{side}_{column}" for side in sides] for unit, column in COUNTS.items()}
    unit = unit_that_covers({unit: int((values[of] > 0).to_numpy().sum()) for unit, of in counts.items()}) or "token"
    unknown = np.full(len(values), np.nan)
    made: dict[str, object] = {
        "step": step,
        "split": pd.Categorical.from_codes(np.zeros(len(values), np.int8), categories=pd.Index([split.name])),
        "pair_id": pd.Categorical.from_codes(pair, categories=split.ids),
    }
    of: dict[str, dict[str, FloatArray]] = {}
    for side in SIDES:
        known = side in sides
        sums = values[f"{side}_sum_logp"].to_numpy() if known else unknown
        count = values[f"{side}_{COUNTS[unit]}"].to_numpy() if known else unknown
        ce = metrics.ce(sums, count)
        with np.errstate(over="ignore"):
            of[side] = {"sum_logp": sums, "count": count, "ce": ce, "ppl": np.exp(ce)}
    made |= {f"{side}_{name}": of[side][name] for name in ("sum_logp", "count", "ce", "ppl") for side in SIDES}
    a, b = (values[letter].to_numpy() if letter in values else unknown for letter in "ab")
    beta = rows.run.info.beta
    with np.errstate(invalid="ignore"):
        made |= {"a": a, "b": b, "margin": (a - b) * (np.nan if beta is None else beta)}
    made["loss"] = _losses(rows.run, values, step)
    made["unit"] = pd.Categorical.from_codes(np.zeros(len(values), np.int8), categories=pd.Index([unit]))
    return pd.DataFrame(made, copy=False)


def _losses(run: Run, values: pd.DataFrame, step: np.ndarray) -> FloatArray:
    """Loss of each row, NaN where it has none."""
    spec, _ = loss_spec(run)
    if spec is None or not len(values):
        return np.full(len(values), np.nan)
    # A batch's SFT term is a mean over its tokens: rows of other steps are none of it.
    bounds = np.flatnonzero(np.diff(step)) + 1 if "sft" in spec.types else np.empty(0, dtype=np.int64)
    parts = np.split(np.arange(len(values)), bounds)
    return np.concatenate([_loss_of(spec, values if len(parts) == 1 else values.iloc[part]) for part in parts])


def _loss_of(spec: LossSpec, values: pd.DataFrame) -> FloatArray:
    try:
        return pair_loss(spec, values)
    except DiagError:  # something that this loss needs is not recorded
        return np.full(len(values), np.nan)


# --- metrics ----------------------------------------------------------------------------------------------------------


def metrics_wide(history: pd.DataFrame) -> pd.DataFrame:
    """See `frames.Run.metrics`."""
    key = ["step", "split"]
    values = history.pivot(index=key, columns="name", values="value")
    epoch = history.groupby(key, observed=True)["epoch"].first()
    place = {name: i for i, name in enumerate(METRICS)}
    last = len(place)

    def order(label: object) -> tuple[int, str]:
        name = str(label)
        return (place.get(name, place.get(name.split("/", 1)[0], last)) if metric_of(name) else last), name

    named = values[sorted(values.columns, key=order)].rename_axis(columns=None)
    return named.assign(epoch=epoch).reset_index().astype({"split": "category"})[[*key, "epoch", *named.columns]]


# --- several frames ---------------------------------------------------------------------------------------------------


def stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames of one kind below each other; categories stay categories, whichever each frame has."""
    frames = [frame for frame in frames if len(frame)] or list(frames[:1])  # what has no row has no category either
    if len(frames) == 1:
        return frames[0]
    in_all = [str(c) for c in frames[0] if all(c in f and isinstance(f[c].dtype, pd.CategoricalDtype) for f in frames)]
    together = pd.concat([frame.drop(columns=in_all) for frame in frames], ignore_index=True)
    named = {c: union_categoricals([frame[c] for frame in frames], sort_categories=True) for c in in_all}
    order = list(dict.fromkeys(c for frame in frames for c in frame))
    return together.assign(**named)[order]
