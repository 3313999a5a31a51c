"""Reading a run folder: lazy pandas frames, with columns, steps, splits and roles pushed down to the files."""

from __future__ import annotations

import glob as globbing
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpo_diag.errors import DiagError
from dpo_diag.records.files import RUN_FILE, part_of
from dpo_diag.records.run_info import RunInfo
from dpo_diag.records.run_upgrade import read_info
from dpo_diag.records.schemas import SCHEMA_VERSION, TABLES, Table
from dpo_diag.records.splits import Role, preferred

REFERENCE_COLUMNS = ("sum_logp", "n_tokens", "entropy_sum", "greedy_logp_sum", "top1", "loss_logp")
"""What is known of a response under the reference; joined to the policy's rows as `ref_...`."""
_REFERENCE_KEY = ["split", "pair_id", "side"]


class Run:
    """A run folder, read only. Frames are read when first asked for and kept.

    `.history .pairs .tokens .outputs .texts .alerts` are DataFrames with the columns of `dpo_diag.records.schemas`;
    an absent table is an empty frame with those columns. `.pairs` and `.tokens` hold the policy's rows; the reference's
    values stand beside them as `ref_sum_logp` (pairs: also ref_n_tokens, ref_entropy_sum, ...) and `ref_logp` (tokens),
    null where the run has none. `.read` selects columns, steps, splits and roles before anything reaches memory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise DiagError("no run folder", where=self.path, expected="a folder with run.json", hint="check the path")
        file = self.path / RUN_FILE
        if not file.is_file():
            inside = sorted(str(p.parent.relative_to(self.path)) for p in self.path.glob("*/" + RUN_FILE))
            inside += sorted(str(p.parent.relative_to(self.path)) for p in self.path.glob("*/*/" + RUN_FILE))
            hint = (
                f"name one of the runs inside: {', '.join(inside[:5])}"
                if inside
                else "import a log with dpo-diag import"
            )
            raise DiagError("not a run folder: no run.json", where=self.path, hint=hint)
        try:
            self.meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DiagError(
                "run.json cannot be read", where=file, got=error, hint="restore it or train again"
            ) from error
        version = str(self.meta.get("schema_version", ""))
        if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            raise DiagError(
                "unknown schema version",
                where=file,
                got=version or "none",
                expected=f"{SCHEMA_VERSION.split('.')[0]}.x",
                hint="read it with the dpo_diag version that wrote it",
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, kind={self.kind!r}, status={self.meta.get('status')!r})"

    @cached_property
    def info(self) -> RunInfo:
        """run.json, typed; one of schema 1.0 is brought up to this version.

        Raises:
            DiagError: a field of the wrong type.
        """
        return read_info(self.meta, self.path / RUN_FILE, lambda: self.history)

    def role(self, split: str) -> Role:
        """What a split's pairs are to the training: train | train_probe | held_out | other."""
        return self.info.role(split)

    def preferred(self, splits: Iterable[str]) -> list[str]:
        """Splits in the order in which an analysis prefers them, best first; see `records.splits`."""
        return preferred(splits, self.role)

    @property
    def name(self) -> str:
        """The folder, as it was named."""
        return str(self.path)

    @property
    def kind(self) -> str:
        """trained | scored | imported."""
        return str(self.meta.get("kind", "trained"))

    def files(self, table: str, steps: Sequence[int] | None = None) -> list[Path]:
        """The Parquet files of a table, in step order, pruned by the step range in their names."""
        parts = [(part, path) for path in sorted((self.path / table).glob("*.parquet")) if (part := part_of(path))]
        return [path for part, path in parts if steps is None or any(part.first <= s <= part.last for s in steps)]

    def has(self, table: str) -> bool:
        """Whether the run holds any row of the table."""
        return bool(self.files(table))

    def arrow(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        steps: Iterable[int] | None = None,
        splits: Iterable[str] | None = None,
        roles: Iterable[str] | None = None,
    ) -> pa.Table:
        """Rows as an Arrow table, filtered while reading; raw, i.e. reference rows are rows and nothing is joined."""
        declared = TABLES[table]
        wanted = list(columns) if columns is not None else declared.names
        unknown = [c for c in wanted if c not in declared.names]
        if unknown:
            raise DiagError(f"unknown columns {unknown}", where=f"table {table}", expected=f"some of {declared.names}")
        step_list = None if steps is None else sorted({int(s) for s in steps})
        condition = _condition(declared, step_list, splits, roles)
        parts = [_read_part(path, declared, wanted, condition) for path in self.files(table, step_list)]
        schema = pa.schema([declared.schema.field(c) for c in wanted])
        if not parts:
            return schema.empty_table()
        return pa.concat_tables(parts).unify_dictionaries()

    def part(self, table: str, path: Path) -> pa.Table:
        """One file's rows, every declared column, validated; raises DiagError for a file that does not fit."""
        return _read_part(path, TABLES[table], TABLES[table].names, None)

    def read(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        steps: Iterable[int] | None = None,
        splits: Iterable[str] | None = None,
        roles: Iterable[str] | None = None,
    ) -> pd.DataFrame:
        """Rows of a table as a DataFrame, filtered while reading; raw (see `arrow`). Text columns are strings,
        except in `tokens`, whose ids stay categorical for the sake of memory."""
        arrow = self.arrow(table, columns, steps, splits, roles)
        if table != "tokens":
            for i, field in enumerate(arrow.schema):
                if pa.types.is_dictionary(field.type):
                    arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.string()))
        frame: pd.DataFrame = arrow.to_pandas()
        return frame

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per (step, split, name), ordered; a value that was logged twice counts once, the last one."""
        frame = self.read("history").drop_duplicates(list(TABLES["history"].key), keep="last")
        return frame.sort_values(["step", "split", "name"], kind="stable", ignore_index=True)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One policy row per (step, split, pair_id, side), the reference's values joined as `ref_*` columns."""
        frame = self.read("pairs").drop_duplicates(list(TABLES["pairs"].key), keep="last")
        return join_reference(frame)

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One policy row per response token, the reference's joined as `ref_logp`. May be large: see `read`."""
        frame = self.read("tokens").drop_duplicates(list(TABLES["tokens"].key), keep="last")
        key = [*_REFERENCE_KEY, "position"]
        reference = frame.loc[frame["role"] == "ref", [*key, "logp"]].drop_duplicates(key)
        policy = frame.loc[frame["role"] == "policy"]
        joined = policy.merge(reference.rename(columns={"logp": "ref_logp"}), on=key, how="left")
        return joined.sort_values(["step", "split", "pair_id", "side", "position"], kind="stable", ignore_index=True)

    @cached_property
    def outputs(self) -> pd.DataFrame:
        """One row per (step, model, prompt_id, sample)."""
        frame = self.read("outputs").drop_duplicates(list(TABLES["outputs"].key), keep="last")
        return frame.sort_values(["step", "model", "prompt_id", "sample"], kind="stable", ignore_index=True)

    @cached_property
    def texts(self) -> pd.DataFrame:
        """Texts of the pairs, one row per pair_id."""
        return self.read("texts").drop_duplicates(["pair_id"], ignore_index=True)

    @cached_property
    def alerts(self) -> pd.DataFrame:
        """What the live guards said."""
        frame = self.read("alerts").drop_duplicates(list(TABLES["alerts"].key))
        return frame.sort_values("step", kind="stable", ignore_index=True)


def join_reference(pairs: pd.DataFrame) -> pd.DataFrame:
    """Raw pair rows (policy and reference) to policy rows with `ref_*` columns.

    A reference row belongs to (split, pair_id, side) and stands once, whatever step it was written at.
    """
    reference = pairs.loc[pairs["role"] == "ref"].drop_duplicates(_REFERENCE_KEY)
    policy = pairs.loc[pairs["role"] == "policy"]
    renamed = reference[[*_REFERENCE_KEY, *REFERENCE_COLUMNS]].rename(
        columns={c: f"ref_{c}" for c in REFERENCE_COLUMNS}
    )
    joined = policy.merge(renamed, on=_REFERENCE_KEY, how="left", validate="many_to_one")
    return joined.sort_values(["step", "split", "pair_id", "side"], kind="stable", ignore_index=True)


def _condition(
    table: Table, steps: list[int] | None, splits: Iterable[str] | None, roles: Iterable[str] | None
) -> pc.Expression | None:
    conditions = []
    if steps is not None and "step" in table.names:
        conditions.append(pc.field("step").isin(pa.array(steps, pa.int64())))
    for name, values in (("split", splits), ("role", roles)):
        if values is not None and name in table.names:
            conditions.append(pc.field(name).cast(pa.string()).isin(pa.array(list(values), pa.string())))
    if not conditions:
        return None
    combined = conditions[0]
    for condition in conditions[1:]:
        combined = combined & condition
    return combined


def _read_part(path: Path, table: Table, wanted: list[str], condition: pc.Expression | None) -> pa.Table:
    """One file, in the declared types; a column that an older version did not write is null."""
    try:
        present = pq.read_schema(path).names
        read = pq.read_table(path, columns=[c for c in wanted if c in present], filters=condition)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise DiagError(
            "a record file cannot be read",
            where=path,
            got=error,
            hint="remove that file: only its steps are lost; or restore it",
        ) from error
    arrays = []
    by_name = {c.name: c for c in table.columns}
    for name in wanted:
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
    return pa.Table.from_arrays(arrays, schema=pa.schema([table.schema.field(c) for c in wanted]))


def load_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder; raises DiagError for anything that is not one."""
    return Run(path)


class Runs(list[Run]):
    """Several runs; `.history .pairs .tokens .outputs` stack their frames with a `run` column."""

    def _stack(self, table: str) -> pd.DataFrame:
        frames = [getattr(run, table).assign(run=run.name) for run in self]
        stacked: pd.DataFrame = pd.concat(frames, ignore_index=True)
        return stacked

    @property
    def history(self) -> pd.DataFrame:
        return self._stack("history")

    @property
    def pairs(self) -> pd.DataFrame:
        return self._stack("pairs")

    @property
    def tokens(self) -> pd.DataFrame:
        return self._stack("tokens")

    @property
    def outputs(self) -> pd.DataFrame:
        return self._stack("outputs")


def load_runs(pattern: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Runs:
    """Open every run that a glob (or a list of paths) names; folders without run.json are passed over.

    Raises:
        DiagError: no run found.
    """
    if isinstance(pattern, (str, os.PathLike)):
        paths = sorted(globbing.glob(str(pattern), recursive=True))
    else:
        paths = [str(p) for p in pattern]
    runs = Runs(Run(p) for p in paths if (Path(p) / RUN_FILE).is_file())
    if not runs:
        raise DiagError(
            "no run found", where=pattern, hint="name run folders or a glob over them, e.g. 'runs/sql_dpo/*/*'"
        )
    return runs
