"""Writing a run folder: tables as Parquet and run.json, each checked against its declaration.

Files are renamed into place, so that a killed run loses at most the step being written; writing the same step again
replaces its rows, resuming removes what lies beyond; many small files are merged (`records.merging`).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from dpo_diag.errors import DiagError
from dpo_diag.records.files import RUN_FILE, SCHEMA_VERSION, Part, remove_temporary, to_label, write_json
from dpo_diag.records.merging import Parts
from dpo_diag.records.parts import listed
from dpo_diag.records.reader import Run
from dpo_diag.records.run_info import Kind, RunInfo, SplitInfo, Status, StoppedBy
from dpo_diag.records.run_lock import hold, make_room
from dpo_diag.records.schemas import TABLES, Table
from dpo_diag.records.secrets import without_secrets
from dpo_diag.records.splits import Role, role_from_name
from dpo_diag.records.typed_json import from_document, to_document

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "pandas",
    "pyarrow",
    "wandb",
    "hydra-core",
)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a run computes; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def to_arrow(table: Table, rows: pd.DataFrame | Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table of the declared schema; missing nullable columns become null.

    Raises:
        DiagError: an unknown column, a missing or null required value, or a value of the wrong type.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows if isinstance(rows, Mapping) else list(rows))
    unknown = [c for c in frame.columns if c not in table.names]
    if unknown:
        raise DiagError(f"unknown columns {unknown}", where=f"table {table.name}", expected=f"some of {table.names}")
    arrays = []
    for column in table.columns:
        if column.name not in frame.columns:
            if not column.nullable and len(frame):
                raise DiagError(
                    f"column {column.name} is missing", where=f"table {table.name}", expected=column.meaning
                )
            arrays.append(pa.nulls(len(frame), column.type))
            continue
        # NaN is a value of a float column (a NaN loss is a finding) and a missing value in every other one.
        from_pandas = not pa.types.is_floating(column.type) or frame[column.name].dtype == object
        try:
            values = frame[column.name]
            if pa.types.is_dictionary(column.type):
                strings = pa.array(values.astype(object), pa.string(), from_pandas=True)
                array: pa.Array = (
                    pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))
                    if len(strings) == 0
                    else strings.dictionary_encode()
                )
            elif pa.types.is_floating(column.type) and not from_pandas:
                array = pa.array(values.to_numpy(dtype="float64", na_value=np.nan), column.type)
            else:
                array = pa.array(values, column.type, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
            raise DiagError(
                f"column {column.name} does not fit", where=f"table {table.name}", got=error, expected=f"{column.type}"
            ) from error
        if array.null_count and not column.nullable:
            row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            raise DiagError(
                f"column {column.name} is null", where=f"table {table.name}, row {row}", expected=column.meaning
            )
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=table.schema)


def changed(info: RunInfo, where: Path, fields: Mapping[str, Any]) -> RunInfo:
    """`info` with other values of some fields, each checked against its declaration; None forgets a value.

    A mapping for a record (model, tokenizer, ...) changes the record's fields that it names and leaves the others; a
    record replaces the one before it, and so does any other value.
    """
    document = to_document(info)
    for name, value in fields.items():
        known = getattr(info, name, None)
        adds = is_dataclass(known) and isinstance(value, Mapping)
        document[name] = {**document.get(name, {}), **value} if adds else value
    return from_document(RunInfo, without_secrets(to_document(document)), where)


def annotate(folder: str | os.PathLike[str], **fields: Any) -> None:
    """Set fields in the run.json of a run that stands, e.g. where a tracker shows it; all else stays as it is.

    Raises:
        DiagError: not a run folder, an unknown field, or a value of another type than declared.
    """
    run = Run(folder)
    info = changed(run.info, run.path / RUN_FILE, {"schema_version": SCHEMA_VERSION, **fields})
    write_json(run.path / RUN_FILE, to_document(info))


class RunWriter:
    """Writes one run folder; in a distributed run every rank has its own with its `rank`, rank 0 writes run.json.

    Args:
        path: the run folder; created if absent.
        kind: "trained", "scored" or "imported".
        rank: this process's rank.
        resume_step: continue an existing run after this optimizer step: rows beyond it are removed, so that resuming
            leaves neither a duplicate nor a gap. None starts afresh and refuses a folder that already holds records.
        adds: what is written is added to a run that has its own status and packages, which stay.

    Raises:
        DiagError: the folder holds records and `resume_step` is None; another process writes it.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, kind: Kind = "trained", rank: int = 0, resume_step: int | None = None,
        adds: bool = False,
    ) -> None:  # fmt: skip
        if kind not in get_args(Kind):
            raise DiagError("unknown kind of run", got=kind, expected=f"one of {', '.join(get_args(Kind))}")
        self.path = Path(path)
        self.rank = rank
        self.resume_step = resume_step
        self._of_table: dict[tuple[str, int], Parts] = {}
        self._release: weakref.finalize[..., RunWriter] | None = None
        self.path.mkdir(parents=True, exist_ok=True)
        self._hold()
        self.info = RunInfo(kind=kind)
        if resume_step is not None:
            if (self.path / RUN_FILE).exists():
                self.info = Run(self.path).info
            self.drop_after(resume_step)
        elif rank == 0 and any(listed(self.path / name) for name in TABLES):
            raise DiagError(
                "the folder already holds a run",
                where=self.path,
                hint="name another folder, remove this one, or resume from its last checkpoint",
            )
        if rank == 0:
            remove_temporary(self.path)
        own = {} if adds else {"status": "running", "stopped_by": None, "packages": package_versions()}
        self.update(schema_version=SCHEMA_VERSION, kind=kind, created=self.info.created or _now(), **own)

    def write(
        self, table: str, rows: pd.DataFrame | Mapping[str, Any] | Iterable[Mapping[str, Any]], split: str = "all"
    ) -> Path | None:
        """Write rows of one table as one file; `split` only names the file (several splits may share one).

        Writing the same table, split and step range again replaces the earlier rows. Empty rows write nothing.

        Returns: the file that holds them now, or None when there was nothing to write.
        """
        declared = TABLES[table]
        arrow = to_arrow(declared, rows)
        if arrow.num_rows == 0:
            return None
        self._hold()
        steps = arrow.column("step").to_numpy() if "step" in declared.names else np.zeros(1, dtype=np.int64)
        part = Part(int(steps.min()), int(steps.max()), to_label(split), self.rank)
        path = self._parts(table, self.rank).write(part, arrow)
        if "split" in declared.names:
            self._describe_new_splits(sorted(map(str, arrow.column("split").unique().to_pylist())))
        return path

    def update(self, **fields: Any) -> None:
        """Set fields of run.json (rank 0 only), see `changed`; values of secret-looking keys are replaced.

        Raises:
            DiagError: an unknown field, or a value of another type than declared.
        """
        if self.rank == 0:
            self.info = changed(self.info, self.path / RUN_FILE, fields)
            write_json(self.path / RUN_FILE, to_document(self.info))

    def describe_split(self, split: str, role: Role, **facts: Any) -> None:
        """Say what a split is; `facts` are the other fields of SplitInfo. Without this its name decides the role."""
        self.update(splits={**self.info.splits, split: SplitInfo(role=role, **facts)})

    def finish(
        self, status: Status = "finished", error: str | None = None, stopped_by: StoppedBy | None = None
    ) -> None:
        """Merge the files, set the final status and the time; `error` is what ended a failed run, in one line,
        `stopped_by` what ended a finished one early. Others may write the folder then."""
        self.merge()
        told = {"status": status, "error": error, **({} if stopped_by is None else {"stopped_by": stopped_by})}
        try:
            self.update(**told, ended=_now())
        except OSError:
            make_room(self.path)
            self.update(**told, ended=_now())
        finally:
            self.release()

    def release(self) -> None:
        """Let others write the folder."""
        if self._release is not None:
            self._release()
            self._release = None

    def _hold(self) -> None:
        """From now on no other process writes the folder; the ranks of one launch write it together."""
        if self._release is None and self.rank == 0 and os.environ.get("RANK", "0") == "0":
            self._release = weakref.finalize(self, hold(self.path))

    def _describe_new_splits(self, splits: Iterable[str]) -> None:
        """Every split that the records hold stands in run.json."""
        new = {s: SplitInfo(role=role_from_name(s)) for s in splits if s not in self.info.splits}
        if new and self.rank == 0:
            self.update(splits={**self.info.splits, **new})

    def drop_after(self, step: int) -> None:
        """Remove this rank's rows of later steps; rank 0 also removes those of ranks that no longer exist."""
        for name, table in TABLES.items():
            if "step" in table.names:
                ranks = {part.rank for part, _ in listed(self.path / name)} if self.rank == 0 else {self.rank}
                for rank in ranks:
                    self._parts(name, rank).cut_after(step)

    def merge(self) -> None:
        """Merge this rank's files, where there are many."""
        for name in TABLES:
            self._parts(name, self.rank).merge(at_end=True)

    def _parts(self, table: str, rank: int) -> Parts:
        if (table, rank) not in self._of_table:
            self._of_table[table, rank] = Parts(self.path, TABLES[table], rank)
        return self._of_table[table, rank]
