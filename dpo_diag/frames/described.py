"""What the columns of a run's frames are: from the schemas and the metric table, which say it once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.frames.wide import PAIRS_WIDE
from dpo_diag.records.metric_table import label_of, metric_of
from dpo_diag.records.schemas import TABLES
from dpo_diag.records.tables import join_reference, join_reference_tokens, to_frame

if TYPE_CHECKING:
    from dpo_diag.frames.run import Run

_COLUMNS = ["table", "column", "dtype", "unit", "meaning", "better"]
_JOINED = {"pairs": join_reference, "tokens": join_reference_tokens}
"""What puts the reference's columns beside the policy's, as `ref_...`."""
_OF_HISTORY = {c.name: c for c in TABLES["history"].columns}


def described(run: Run, table: str | None = None) -> pd.DataFrame:
    """See `frames.Run.describe`."""
    known = [*TABLES, "metrics", PAIRS_WIDE.name]
    if table is not None and table not in known:
        raise DiagError("no such table", got=table, expected=f"one of {known}", usage=True)
    made_of = {"metrics": "history", PAIRS_WIDE.name: "pairs"}
    names = [name for name in known if run.has(made_of.get(name, name))] if table is None else [table]
    rows = [(name, *row) for name in names for row in _rows(run, name)]
    return pd.DataFrame(rows, columns=_COLUMNS, dtype="str").astype({"table": "category", "better": "category"})


def _rows(run: Run, table: str) -> Iterator[tuple[str, str, str | None, str, str | None]]:
    if table == "metrics":
        for name, values in run.metrics.items():
            yield str(name), str(values.dtype), *_of_metric(str(name))
        return
    declared = PAIRS_WIDE if table == PAIRS_WIDE.name else TABLES[table]
    frame = to_frame(declared.schema.empty_table(), keep_categories=table in ("tokens", PAIRS_WIDE.name), nullable=True)
    if table in _JOINED:
        frame = _JOINED[table](frame)
    by_name = {c.name: c for c in declared.columns}
    for name, values in frame.items():
        column = by_name.get(str(name)) or by_name[str(name).removeprefix("ref_")]
        of_reference = "" if column.name == name else "under the reference: "
        yield str(name), str(values.dtype), column.unit, of_reference + column.meaning, None


def _of_metric(name: str) -> tuple[str | None, str, str | None]:
    """(unit, meaning, which way is better) of a column of `Run.metrics`."""
    metric = metric_of(name)
    if metric is None:
        column = _OF_HISTORY.get(name)
        unknown = "as the trainer logged it; the metric table does not know it"
        return (None, unknown, None) if column is None else (column.unit, column.meaning, None)
    return metric.unit, f"{label_of(name)}: {metric.description}", metric.better
