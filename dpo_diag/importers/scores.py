"""Task scores of checkpoints from a file: rows of step, name, value, n (JSON lines or CSV), for `--scores`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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
    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    lines: dict[tuple[int, str, str], int] = {}
    inner = Skipped()
    for line, row in readable_rows(path, inner):
        step, value = step_number(row.get("step")), number(row.get("value"))
        name = row.get("name")
        if step is None or value is None or not isinstance(name, str) or not name:
            inner.add(line, "a score needs step, name and value")
            continue
        n = number(row.get("n"))
        key = (step, str(row.get("split") or split or EVAL_SPLIT), "score/" + name.removeprefix("score/"))
        if key in rows:
            inner.add(lines[key], f"a score that stands again: {key[2]} at step {step} in line {line}, which counts")
        lines[key] = line
        weight = n if n is not None and n > 0 else math.nan
        rows[key] = {"step": step, "split": key[1], "name": key[2], "value": value, "weight": weight}
    skipped.extend(inner, path.name)
    if not rows:
        raise DiagError("no score can be read", where=path, expected="rows of step, name, value, n", got="none")
    return pd.DataFrame(list(rows.values()))
