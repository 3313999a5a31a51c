"""Tables of a run that are one file each, beside the tables of many: written by scoring and generation, read whole."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import verified
from dpo_diag.records.files import write_parquet
from dpo_diag.records.schemas import SideTable
from dpo_diag.records.writer import to_arrow


def read_side_table(folder: str | os.PathLike[str], table: SideTable, split: str | None = None) -> pd.DataFrame:
    """The rows with the declared columns; none where the run has no such file.

    Args:
        split: rows of one split only, of a table that has splits.

    Raises:
        DiagError: not a table, a missing column, a value of another type, a duplicate row; with file and row.
    """
    path = _place(Path(folder), table)
    frame = _checked(path, table) if path.is_file() else pd.DataFrame({c: [] for c in table.names})
    rows: pd.DataFrame = to_arrow(table, frame).to_pandas()
    return rows if split is None else rows[rows["split"] == split].reset_index(drop=True)


def write_side_table(folder: str | os.PathLike[str], table: SideTable, rows: pd.DataFrame) -> Path:
    """Put rows into the file, in place of those that have the same `table.replaced_by`. Renamed into place."""
    path, by = Path(folder) / table.file, list(table.replaced_by)
    new = rows[table.names]
    old = read_side_table(folder, table)
    kept = old[~pd.MultiIndex.from_frame(old[by]).isin(pd.MultiIndex.from_frame(new[by]))] if len(old) else old
    arrow = to_arrow(table, pd.concat([kept, new], ignore_index=True) if len(kept) else new)
    write_parquet(path, arrow)
    if table.older is not None:
        (path.parent / table.older).unlink(missing_ok=True)
    return path


def _place(folder: Path, table: SideTable) -> Path:
    """The file that holds the table: an earlier version's where there is no other."""
    path = folder / table.file
    older = folder / table.older if table.older is not None else path
    return older if older.is_file() and not path.is_file() else path


def _checked(path: Path, table: SideTable) -> pd.DataFrame:
    try:
        # As text: pandas would take a pair_id of digits for a number.
        is_parquet = path.suffix == ".parquet"
        data = io.BytesIO(verified(path, table.hint) if is_parquet else path.read_bytes())
        frame = pd.read_parquet(data) if is_parquet else pd.read_csv(data, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DiagError("not a table", where=path, got=str(error).splitlines()[0], hint=table.hint) from error
    missing = [c for c in table.names if c not in frame.columns]
    if missing:
        got = ", ".join(map(str, frame.columns))
        raise DiagError("a column is missing", where=path, got=got, expected=missing[0], hint=table.hint)
    frame = frame[table.names]
    for column in table.columns:
        if pa.types.is_floating(column.type) and frame[column.name].dtype.kind not in "fiu":
            frame = frame.assign(**{column.name: _numbers(frame[column.name], path, table)})
    duplicates = frame.duplicated(list(table.key))
    if duplicates.any():
        row = int(np.flatnonzero(duplicates)[0])
        key = ", ".join(str(frame[name].iloc[row]) for name in table.key)
        raise DiagError("a duplicate row", where=f"{path}, row {row + 2}", got=key, hint=table.hint)
    return frame


def _numbers(texts: pd.Series, path: Path, table: SideTable) -> pd.Series:
    """Numbers of a text column; an empty field is an unknown value, anything else that is no number a damaged file."""
    values = pd.to_numeric(texts.replace("", "nan"), errors="coerce").astype(np.float64)
    bad = values.isna() & ~texts.str.lower().isin(["", "nan"])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        where = f"{path}, row {row + 2}, column {texts.name}"
        raise DiagError("not a number", where=where, got=texts[row], hint=table.hint)
    return values
