"""Writing a run folder: Parquet files renamed into place, so that a killed run loses at most the step being written.

A file's name carries its first and last step, its split and the rank that wrote it
(`pairs/00000010-00000010.eval.r0.parquet`): writing the same step again replaces it, resuming removes what lies beyond.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dpo_diag.errors import DiagError
from dpo_diag.records.schemas import KINDS, SCHEMA_VERSION, STATUSES, TABLES, Table

RUN_FILE = "run.json"
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
_SECRET = re.compile(
    r"(^|_)(secret|password|passwd|api_?key|credential)s?$|^((hf|hub|hub_model|access|auth|api|bearer|user|git\w*|wandb)_)?token$",
    re.IGNORECASE,
)
"""Keys whose values are not written down; pad_token and its like are no secrets."""
_PART = re.compile(r"^(\d+)-(\d+)\.(.+)\.r(\d+)\.parquet$")


def split_to_file(split: str) -> str:
    """A split's name as part of a file name: anything but letters, digits, _ and - becomes %XX."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda m: "".join(f"%{b:02X}" for b in m.group().encode()), split)


def part_range(path: Path) -> tuple[int, int] | None:
    """(first step, last step) from a part's file name; None for a file that is not one of ours."""
    match = _PART.match(path.name)
    return (int(match.group(1)), int(match.group(2))) if match else None


def without_secrets(value: Any) -> Any:
    """The same structure with the values of secret-looking keys replaced; keys compare case-insensitively."""
    if isinstance(value, Mapping):
        return {
            str(k): "[redacted]" if _SECRET.search(str(k)) and isinstance(v, str) and v else without_secrets(v)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(v) for v in value]
    return value


def _json_default(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Path, datetime)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document under a temporary name and rename it: a reader sees the old or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, ensure_ascii=False, default=_json_default)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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


def write_parquet(path: Path, table: pa.Table) -> None:
    """zstd Parquet: dictionaries for ids, byte-stream split for floats; temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    floats = [f.name for f in table.schema if pa.types.is_floating(f.type)]
    ids = [f.name for f in table.schema if pa.types.is_dictionary(f.type) or pa.types.is_integer(f.type)]
    pq.write_table(table, temporary, compression="zstd", use_dictionary=ids, use_byte_stream_split=floats or False)
    temporary.replace(path)


class RunWriter:
    """Writes one run folder; in a distributed run every rank has its own with its `rank`, rank 0 writes run.json.

    Args:
        path: the run folder; created if absent.
        kind: "trained", "scored" or "imported".
        rank: this process's rank.
        resume_step: continue an existing run after this optimizer step: rows beyond it are removed, so that resuming
            leaves neither a duplicate nor a gap. None starts afresh and refuses a folder that already holds records.

    Raises:
        DiagError: the folder holds records and `resume_step` is None.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, kind: str = "trained", rank: int = 0, resume_step: int | None = None
    ) -> None:
        if kind not in KINDS:
            raise DiagError("unknown kind of run", got=kind, expected=f"one of {KINDS}")
        self.path = Path(path)
        self.rank = rank
        self.resume_step = resume_step
        self.path.mkdir(parents=True, exist_ok=True)
        existing = self.path / RUN_FILE
        self.meta: dict[str, Any] = {}
        if resume_step is not None:
            if existing.exists():
                self.meta = json.loads(existing.read_text(encoding="utf-8"))
            self._drop_after(resume_step)
        elif any(part_range(p) for name in TABLES for p in (self.path / name).glob("*.parquet")) and rank == 0:
            raise DiagError(
                "the folder already holds a run",
                where=self.path,
                hint="name another folder, remove this one, or resume from its last checkpoint",
            )
        if rank == 0:
            self.update(
                schema_version=SCHEMA_VERSION,
                kind=kind,
                status="running",
                created=self.meta.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
                packages=package_versions(),
            )

    def write(
        self, table: str, rows: pd.DataFrame | Mapping[str, Any] | Iterable[Mapping[str, Any]], split: str = "all"
    ) -> Path | None:
        """Write rows of one table as one file; `split` only names the file (several splits may share one).

        Writing the same table, split and step range again replaces the earlier file. Empty rows write nothing.

        Returns: the file, or None when there was nothing to write.
        """
        declared = TABLES[table]
        arrow = to_arrow(declared, rows)
        if arrow.num_rows == 0:
            return None
        steps = arrow.column("step").to_numpy() if "step" in declared.names else np.zeros(1, dtype=np.int64)
        name = f"{int(steps.min()):08d}-{int(steps.max()):08d}.{split_to_file(split)}.r{self.rank}.parquet"
        path = self.path / table / name
        write_parquet(path, arrow)
        return path

    def update(self, **fields: Any) -> None:
        """Merge fields into run.json (rank 0 only); values of secret-looking keys are replaced."""
        if self.rank != 0:
            return
        self.meta.update(without_secrets(fields))
        write_json(self.path / RUN_FILE, self.meta)

    def finish(self, status: str = "finished") -> None:
        """Set the final status and the time."""
        if status not in STATUSES:
            raise DiagError("unknown status", got=status, expected=f"one of {STATUSES}")
        self.update(status=status, ended=datetime.now(UTC).isoformat(timespec="seconds"))

    def _drop_after(self, step: int) -> None:
        """Remove this rank's rows of later steps; rank 0 also removes those of ranks that no longer exist."""
        for name, table in TABLES.items():
            if "step" not in table.names:
                continue
            for path in sorted((self.path / name).glob("*.parquet")):
                bounds, match = part_range(path), _PART.match(path.name)
                if bounds is None or match is None or bounds[1] <= step:
                    continue
                if int(match.group(4)) != self.rank and self.rank != 0:
                    continue
                if bounds[0] <= step:
                    kept = pq.read_table(path)
                    kept = kept.filter(pa.compute.less_equal(kept.column("step"), step))
                    if kept.num_rows:
                        last = int(pa.compute.max(kept.column("step")).as_py())
                        write_parquet(
                            path.with_name(f"{bounds[0]:08d}-{last:08d}.{match.group(3)}.r{match.group(4)}.parquet"),
                            kept,
                        )
                path.unlink(missing_ok=True)
