"""answer_logps.parquet of a run folder: log-probs of answers under models that did not write them.

One row per (scorer, writer, prompt, sample). What a model gives its own answer stands in outputs/ (sum_logp).
Written by generation (`dpo-generate across=true`), read by the comparison of outputs: one place declares the columns.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from dpo_diag.errors import DiagError

ANSWER_LOGPS_FILE = "answer_logps.parquet"
KEY = ["model", "step", "of_model", "of_step", "prompt_id", "sample"]
COLUMNS = (*KEY, "sum_logp")


def read_answer_logps(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Rows with COLUMNS: sum_logp (nats) of the answer of (of_model, of_step) under (model, step); none without a file.

    Raises:
        DiagError: no such table, or a missing column.
    """
    path = Path(folder) / ANSWER_LOGPS_FILE
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    hint = "remove it and run dpo-generate with across=true again"
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DiagError("not a table", where=path, got=str(error).splitlines()[0], hint=hint) from error
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        raise DiagError("a column is missing", where=path, expected=missing[0], hint=hint)
    return frame[list(COLUMNS)]


def add_answer_logps(folder: str | os.PathLike[str], rows: pd.DataFrame) -> Path:
    """Add rows to the file, in place of those of the same key. Renamed into place."""
    path = Path(folder) / ANSWER_LOGPS_FILE
    before = read_answer_logps(folder)
    rows = rows[list(COLUMNS)]
    both = pd.concat([before, rows], ignore_index=True) if len(before) else rows
    temporary = path.with_suffix(".tmp")
    both.drop_duplicates(KEY, keep="last").to_parquet(temporary, index=False, compression="zstd")
    os.replace(temporary, path)
    return path
