"""Task scores of checkpoints from a file: rows of step, name, value, n (JSON lines or CSV), for `--scores`."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.numbers import number, step_number
from dpo_diag.records.row_files import readable_rows
from dpo_diag.records.schemas import EVAL_SPLIT
from dpo_diag.records.text_files import Skipped


def read_scores(path: Path, skipped: Skipped, split: str | None = None) -> pd.DataFrame:
    """History rows `score/NAME` with weight n (answers the score is a mean over; null if not given).

    Raises:
        DiagError: no row could be read.
    """
    rows = []
    inner = Skipped()
    for line, row in readable_rows(path, inner):
        step, value = step_number(row.get("step")), number(row.get("value"))
        name = row.get("name")
        if step is None or value is None or not isinstance(name, str) or not name:
            inner.add(line, "a score needs step, name and value")
            continue
        n = number(row.get("n"))
        rows.append(
            {
                "step": step,
                "split": str(row.get("split") or split or EVAL_SPLIT),
                "name": name if name.startswith("score/") else f"score/{name}",
                "value": value,
                "weight": n if n is not None and n > 0 else math.nan,
            }
        )
    skipped.extend(inner, path.name)
    if not rows:
        raise DiagError("no score can be read", where=path, expected="rows of step, name, value, n", got="none")
    return pd.DataFrame(rows).drop_duplicates(["step", "split", "name"], keep="last", ignore_index=True)
