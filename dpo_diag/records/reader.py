"""Reading a run folder: lazy pandas frames, with columns, steps, splits and roles pushed down to the files.

Opening a folder reads run.json alone: pandas and pyarrow come with the first table, so that a mistyped path is answered
at once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpo_diag.errors import DamagedRecords, DiagError
from dpo_diag.records.checksums import DamagedFile, damaged, read_json
from dpo_diag.records.files import RUN_FILE, SCHEMA_VERSION
from dpo_diag.records.parts import steady, visible
from dpo_diag.records.remote import at_hand
from dpo_diag.records.run_lock import before_first_record

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from dpo_diag.records.run_info import RunInfo
    from dpo_diag.records.splits import Role


class Run:
    """A run folder, read only. Frames are read when first asked for and kept.

    `.history .pairs .tokens .outputs .texts .alerts` are DataFrames with the columns of `dpo_diag.records.schemas`;
    an absent table is an empty frame with those columns. `.pairs` and `.tokens` hold the policy's rows; the reference's
    values stand beside them as `ref_sum_logp` (pairs: also ref_n_tokens, ref_entropy_sum, ...) and `ref_logp` (tokens),
    null where the run has none. `.read` selects columns, steps, splits and roles before anything reaches memory.

    Args:
        whole: a damaged record file is an error; else its rows are left out with a warning. What writes records from
            those that it reads asks for all of them: a mean over what is left would be taken for the set's.
    """

    def __init__(self, path: str | os.PathLike[str], *, whole: bool = False) -> None:
        self.path = Path(path)
        self._whole = whole
        if not self.path.is_dir():
            raise DiagError("no run folder", where=self.path, expected="a folder with run.json", hint="check the path")
        file = self.path / RUN_FILE
        if not file.is_file():
            inside = sorted(str(p.parent.relative_to(self.path)) for p in self.path.glob("*/" + RUN_FILE))
            inside += sorted(str(p.parent.relative_to(self.path)) for p in self.path.glob("*/*/" + RUN_FILE))
            hint = (
                f"name one of the runs inside: {', '.join(inside[:5])}"
                if inside
                else before_first_record(self.path) or "import a log with dpo-diag import"
            )
            raise DiagError("not a run folder: no run.json", where=self.path, hint=hint)
        meta = read_json(file)
        if not isinstance(meta, dict):
            raise damaged(file, f"a {type(meta).__name__}, no object", "restore it or train again")
        self.meta: dict[str, Any] = meta
        self.damaged: dict[Path, DamagedFile] = {}
        """Record files that could not be read so far, and why: their rows are left out."""
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
        from dpo_diag.records.run_upgrade import read_info

        return read_info(self.meta, self.path / RUN_FILE, lambda: self.history)

    def role(self, split: str) -> Role:
        """What a split's pairs are to the training: train | train_probe | held_out | other."""
        return self.info.role(split)

    def preferred(self, splits: Iterable[str]) -> list[str]:
        """Splits in the order in which an analysis prefers them, best first; see `records.splits`."""
        from dpo_diag.records.splits import preferred

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
        """The Parquet files of a table, in step order, pruned by the step range in their names.

        A writer may merge them before they are read: see `records.parts.steady`.
        """
        parts = steady(lambda: visible(self.path / table), self.path / table)
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
        """Rows as an Arrow table, filtered while reading; raw, i.e. reference rows are rows and nothing is joined.

        A damaged file's rows are left out, with one warning (`DamagedRecords`) that names it; it stands in `damaged`.
        Where the run was opened as `whole`, it is raised.
        """
        from dpo_diag.records.schemas import TABLES
        from dpo_diag.records.tables import read_rows

        declared = TABLES[table]
        asked = list(columns) if columns is not None else declared.names
        unknown = [c for c in asked if c not in declared.names]
        if unknown:
            raise DiagError(f"unknown columns {unknown}", where=f"table {table}", expected=f"some of {declared.names}")
        step_list = None if steps is None else sorted({int(s) for s in steps})
        named = {"step": step_list, "split": splits, "role": roles}
        wanted = {c: list(v) for c, v in named.items() if v is not None and c in declared.names}
        folder = self.path / table
        files = partial(self.files, table, step_list)
        return steady(lambda: read_rows(files(), declared, asked, wanted, self._pass_over), folder)

    def _pass_over(self, path: Path, error: DamagedFile) -> None:
        if self._whole:
            raise error
        if path not in self.damaged:
            self.damaged[path] = error
            warnings.warn(f"rows are left out: {error}", DamagedRecords, stacklevel=2)

    def part(self, table: str, path: Path) -> pa.Table:
        """One file's rows, every declared column, validated; raises DiagError for a file that does not fit."""
        from dpo_diag.records.schemas import TABLES
        from dpo_diag.records.tables import read_part

        return read_part(path, TABLES[table], TABLES[table].names, {})

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
        from dpo_diag.records.tables import to_frame

        return to_frame(self.arrow(table, columns, steps, splits, roles), keep_categories=table == "tokens")

    def _distinct(self, table: str, keep: Literal["first", "last"] = "last") -> pd.DataFrame:
        """Every row of a table once: of rows with one key the last (or the first) that was written."""
        from dpo_diag.records.schemas import TABLES

        return self.read(table).drop_duplicates(list(TABLES[table].key), keep=keep)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per (step, split, name), ordered; a value that was logged twice counts once, the last one."""
        frame = self._distinct("history")
        return frame.sort_values(["step", "split", "name"], kind="stable", ignore_index=True)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One policy row per (step, split, pair_id, side), the reference's values joined as `ref_*` columns."""
        from dpo_diag.records.tables import join_reference

        return join_reference(self._distinct("pairs"))

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One policy row per response token, the reference's joined as `ref_logp`. May be large: see `read`."""
        from dpo_diag.records.tables import join_reference_tokens

        return join_reference_tokens(self._distinct("tokens"))

    @cached_property
    def outputs(self) -> pd.DataFrame:
        """One row per (step, model, prompt_id, sample)."""
        frame = self._distinct("outputs")
        return frame.sort_values(["step", "model", "prompt_id", "sample"], kind="stable", ignore_index=True)

    @cached_property
    def texts_of_splits(self) -> pd.DataFrame:
        """Texts of the pairs, one row per split and pair_id."""
        return self.read("texts")

    @cached_property
    def texts(self) -> pd.DataFrame:
        """Texts of the pairs, one row per pair_id."""
        return self.texts_of_splits.drop_duplicates(["pair_id"], ignore_index=True)

    @cached_property
    def alerts(self) -> pd.DataFrame:
        """What the live guards said."""
        frame = self._distinct("alerts", keep="first")
        return frame.sort_values("step", kind="stable", ignore_index=True)


def load_run(path: str | os.PathLike[str]) -> Run:
    """Open a run folder, or one behind a URL that fsspec opens (its records are brought here first).

    Raises:
        DiagError: anything that is not one.
    """
    return Run(at_hand(path))
