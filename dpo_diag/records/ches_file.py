"""ches.csv of a run folder: what the reference model said about each pair's hidden states, before any training.

CHES and ln-CHES of Razin et al. 2024 (arXiv 2410.08847), one row per split and pair. Written by scoring, read by the
explanation: one place declares the columns.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from dpo_diag.errors import DiagError

CHES_FILE = "ches.csv"
COLUMNS = ("pair_id", "ches", "ln_ches", "n_chosen", "n_rejected", "split")
NUMBERS = ("ches", "ln_ches", "n_chosen", "n_rejected")


def has_ches(folder: str | os.PathLike[str], split: str) -> bool:
    """Whether the file holds rows of this split."""
    return (Path(folder) / CHES_FILE).is_file() and not read_ches(folder, split).empty


def write_ches(folder: str | os.PathLike[str], rows: pd.DataFrame, split: str) -> Path:
    """Put the rows of one split into the file; those of other splits stay. Renamed into place."""
    path = Path(folder) / CHES_FILE
    own = rows.assign(split=split)[list(COLUMNS)]
    if path.is_file():
        others = read_ches(folder)
        others = others[others["split"] != split]
        own = pd.concat([others, own], ignore_index=True) if len(others) else own
    temporary = path.with_suffix(".tmp")
    own.to_csv(temporary, index=False)
    os.replace(temporary, path)
    return path


def read_ches(folder: str | os.PathLike[str], split: str | None = None) -> pd.DataFrame:
    """Rows of one split (default: all) with COLUMNS; none where the run has no such file.

    Raises:
        DiagError: a missing column, a value that is no number, a pair that stands twice; with file and row.
    """
    path = Path(folder) / CHES_FILE
    if not path.is_file():
        return pd.DataFrame({c: pd.Series(dtype=np.float64 if c in NUMBERS else object) for c in COLUMNS})
    hint = "remove it and score the reference again (dpo-score ches=true)"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise DiagError("not a table", where=path, got=str(error).splitlines()[0], hint=hint) from error
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        raise DiagError("a column is missing", where=path, got=", ".join(map(str, frame.columns)), expected=missing[0],
                        hint=hint)  # fmt: skip
    frame = frame[list(COLUMNS)]
    for name in NUMBERS:
        # An empty field is an unknown value; anything else that is no number is a damaged file.
        values = pd.to_numeric(frame[name].replace("", "nan"), errors="coerce").astype(np.float64)
        bad = values.isna() & ~frame[name].str.lower().isin(["", "nan"])
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            where = f"{path}, row {row + 2}, column {name}"
            raise DiagError("not a number", where=where, got=frame[name][row], hint=hint)
        frame = frame.assign(**{name: values})
    twice = frame.duplicated(["split", "pair_id"])
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise DiagError("a pair stands twice", where=f"{path}, row {row + 2}", got=frame["pair_id"][row], hint=hint)
    return frame if split is None else frame[frame["split"] == split].reset_index(drop=True)
