"""Rows of a run's tables: read from their Parquet files, each opened once; the reference's joined to the policy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import DamagedFile, damaged, verified
from dpo_diag.records.schemas import Table

MEND = "restore it; or remove it: only its rows are lost"
REFERENCE_COLUMNS = ("sum_logp", "n_tokens", "entropy_sum", "greedy_logp_sum", "top1", "loss_logp")
"""What is known of a response under the reference; joined to the policy's rows as `ref_...`."""
REFERENCE_KEY = ["split", "pair_id", "side"]

PassOver = Callable[[Path, DamagedFile], None]
Wanted = Mapping[str, Sequence[Any]]
"""Column -> the values of which a row must hold one: steps, splits, roles."""


def read_rows(
    files: Sequence[Path], table: Table, columns: Sequence[str], wanted: Wanted, pass_over: PassOver
) -> pa.Table:
    """Rows of some files, in the declared types and in their order; an empty table where there are none.

    Args:
        pass_over: told of each damaged file, whose rows are left out.

    Raises:
        DiagError: a file that does not hold what the table declares.
    """
    parts = []
    for path in files:
        try:
            parts.append(read_part(path, table, columns, wanted))
        except DamagedFile as error:
            pass_over(path, error)
    filled = [part for part in parts if part.num_rows] or parts[:1]
    if not filled:
        return _schema(table, columns).empty_table()
    return pa.concat_tables(filled).unify_dictionaries()


def read_part(path: Path, table: Table, columns: Sequence[str], wanted: Wanted) -> pa.Table:
    """One file's wanted rows, in the declared types; a column that an older version did not write is null.

    Raises:
        FileNotFoundError: it is gone: merged since it was listed.
        DamagedFile: it cannot be read, or its bytes are not those that were written.
        DiagError: as `read_rows`.
    """
    by_name = {c.name: c for c in table.columns}
    data = pa.py_buffer(verified(path, MEND))
    try:
        with pq.ParquetFile(data) as file:
            present = file.schema_arrow.names
            asked = {name: values for name, values in wanted.items() if name in present}
            groups, filtered = _row_groups(file.metadata, asked)
            names = dict.fromkeys((*(c for c in columns if c in present), *(asked if filtered else ())))
            # Threads cost more than they bring for a file of one evaluation.
            read = file.read_row_groups(groups, list(names), use_threads=file.metadata.num_rows > _MANY_ROWS)
        if filtered:
            read = read.filter(_holds(read, asked))
    except (pa.ArrowException, OSError, ValueError) as error:  # UnicodeDecodeError is one
        raise damaged(path, error, MEND) from error
    arrays = []
    for name in columns:
        column = by_name[name]
        if name not in present:
            if not column.nullable:
                raise DiagError(
                    f"column {name} is missing", where=path, expected=column.meaning, hint="write the run again"
                )
            arrays.append(pa.chunked_array([pa.nulls(read.num_rows, column.type)]))
            continue
        values = read.column(name)
        if values.null_count and not column.nullable:
            row = int(np.flatnonzero(values.is_null().to_numpy())[0])
            raise DiagError(f"column {name} is null", where=f"{path}, row {row}", expected=column.meaning)
        try:
            arrays.append(values if values.type == column.type else values.cast(column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DiagError(
                f"column {name} has the wrong type",
                where=path,
                got=values.type,
                expected=column.type,
                hint="write the column in the declared type",
            ) from error
    return pa.Table.from_arrays(arrays, schema=_schema(table, columns))


def _schema(table: Table, columns: Sequence[str]) -> pa.Schema:
    declared = table.schema
    return pa.schema([declared.field(c) for c in columns])


_MANY_ROWS = 100_000


def _row_groups(metadata: pq.FileMetaData, wanted: Wanted) -> tuple[list[int], bool]:
    """Row groups that may hold wanted rows by the least and greatest value of each column, and whether some of their
    rows may be others."""
    groups, filtered = [], False
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        leaves = {group.column(j).path_in_schema: j for j in range(group.num_columns)} if wanted else {}
        held, all_held = True, True
        for name, values in wanted.items():
            statistics = group.column(leaves[name]).statistics
            if statistics is None or not statistics.has_min_max or statistics.null_count:
                all_held = False
                continue
            low, high = statistics.min, statistics.max
            held = held and any(low <= v <= high for v in values)
            all_held = all_held and low == high and low in values
        if held:
            groups.append(i)
            filtered = filtered or not all_held
    return groups, filtered


def _holds(rows: pa.Table, wanted: Wanted) -> pa.ChunkedArray:
    """Which rows hold a wanted value in every column."""
    keep = None
    for name, values in wanted.items():
        column = rows.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        held = pc.is_in(column, pa.array(list(values), column.type))
        keep = held if keep is None else pc.and_(keep, held)
    return keep


def join_reference(pairs: pd.DataFrame) -> pd.DataFrame:
    """Raw pair rows (policy and reference) to policy rows with `ref_*` columns.

    A reference row belongs to (split, pair_id, side) and stands once, whatever step it was written at.
    """
    reference = pairs.loc[pairs["role"] == "ref"].drop_duplicates(REFERENCE_KEY)
    policy = pairs.loc[pairs["role"] == "policy"]
    renamed = reference[[*REFERENCE_KEY, *REFERENCE_COLUMNS]].rename(columns={c: f"ref_{c}" for c in REFERENCE_COLUMNS})
    joined = policy.merge(renamed, on=REFERENCE_KEY, how="left", validate="many_to_one")
    return joined.sort_values(["step", "split", "pair_id", "side"], kind="stable", ignore_index=True)


def join_reference_tokens(tokens: pd.DataFrame) -> pd.DataFrame:
    """Raw token rows (policy and reference) to policy rows with the reference's `ref_logp`; see `join_reference`."""
    key = [*REFERENCE_KEY, "position"]
    reference = tokens.loc[tokens["role"] == "ref", [*key, "logp"]].drop_duplicates(key)
    policy = tokens.loc[tokens["role"] == "policy"]
    joined = policy.merge(reference.rename(columns={"logp": "ref_logp"}), on=key, how="left")
    return joined.sort_values(["step", "split", "pair_id", "side", "position"], kind="stable", ignore_index=True)


_MAY_BE_UNKNOWN: Mapping[pa.DataType, Any] = {
    pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(),
}  # fmt: skip
TEXT = pd.StringDtype(na_value=np.nan)
"""The type of text, which pandas 3 takes by itself and pandas 2 when told: missing stays missing in `astype(str)`."""
_TEXTS = {pa.string(): TEXT, pa.large_string(): TEXT}


def to_frame(rows: pa.Table, keep_categories: bool = False, nullable: bool = False) -> pd.DataFrame:
    """Rows as a DataFrame.

    Args:
        keep_categories: text that repeats stays categories; else it is `str`.
        nullable: whole numbers and truth values that may be null are pandas' nullable ones, whatever is null
            in them; else they are floats and objects where something is.
    """
    if not keep_categories:
        for i, field in enumerate(rows.schema):
            if pa.types.is_dictionary(field.type):
                rows = rows.set_column(i, field.name, rows.column(i).cast(pa.string()))
    frame: pd.DataFrame = rows.to_pandas(types_mapper=_TEXTS.get)
    for field in rows.schema:
        if nullable and field.nullable and field.type in _MAY_BE_UNKNOWN:
            frame[field.name] = _MAY_BE_UNKNOWN[field.type].__from_arrow__(rows.column(field.name))
    return frame
