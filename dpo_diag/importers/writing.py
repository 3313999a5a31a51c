"""What was read, written as a run folder of kind `imported`."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.batch_means import batch_means
from dpo_diag.importers.decisions import Decisions, decide
from dpo_diag.importers.merged import History, Key
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.scope import check_scope
from dpo_diag.records.adding import added_to
from dpo_diag.records.files import RUN_FILE, part_of
from dpo_diag.records.model_info import ModelInfo
from dpo_diag.records.run_info import SourceInfo
from dpo_diag.records.run_lock import claimed, held_by, writing
from dpo_diag.records.schemas import TRAIN_SPLIT
from dpo_diag.records.splits import role_from_name
from dpo_diag.records.text_files import Skipped
from dpo_diag.records.typed_json import Tolerance, from_document
from dpo_diag.records.writer import RunWriter
from dpo_diag.text import plural

ASIDE = ".importing"
"""Folder in the run's, where an import writes until it is whole."""
BATCH = 1 << 18
"""History rows that are written at once."""


def write_run(out: Path, sources: list[Parsed], options: Options, scores: pd.DataFrame | None) -> dict[str, Any]:
    """Write all tables and run.json; returns the result that `dpo-diag import --json` prints.

    Args:
        out: as `import_folder` gives it.

    Raises:
        DiagError: nothing at all could be read.
    """
    if scores is None and not any(s.n_read for s in sources):
        raise DiagError(
            "no row could be read",
            where=", ".join(str(s.files[0]) for s in sources),
            got=_first_reason(sources),
            expected="log rows with a loss, rewards or log-probs",
            hint="name the format with --as, or see dpo-diag import --formats",
        )
    sources = _with_steps(sources)
    check_scope(
        {key for s in sources for key in (*s.store.mapping(), *s.store.dropped_keys())},
        {name for s in sources for _, name in s.store.metrics()},
        ", ".join(str(s.files[0]) for s in sources),
    )
    aside = out / ASIDE
    try:
        result = _write(RunWriter(aside, kind="imported"), sources, options, scores)
        _put_in_place(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return result | {"run": str(out)}


@contextmanager
def import_folder(out: Path, *, named: bool) -> Iterator[Path]:
    """The folder that an import writes, from its start: nobody else writes it, and an error leaves nothing of it.
    What a killed import left is no run, and goes.

    Args:
        named: by the user; any other that somebody takes meanwhile gets a number behind its name.

    Raises:
        DiagError: the folder already holds a run, is a file, or another process writes it.
    """
    if out.exists() and not out.is_dir():
        raise DiagError("not a folder", where=out, hint="name a folder for the run with --out", usage=True)
    before = {path for path in (out, *out.parents) if path.exists()}
    out = out if named or out in before else claimed(out)
    try:
        with writing(out):
            if (out / ASIDE).exists() and not (out / RUN_FILE).exists():
                for path in _parts_in(out):
                    path.unlink()
            shutil.rmtree(out / ASIDE, ignore_errors=True)
            if (out / RUN_FILE).exists() or any(_parts_in(out)):
                hint = "name another folder with --out"
                raise DiagError("the folder already holds a run", where=out, hint=hint, usage=True)
            yield out
    finally:
        for path in (out, *out.parents):
            if path in before:
                break
            with suppress(OSError):  # of which one is that something lies in it
                path.rmdir()


def was_killed(out: Path) -> bool:
    """Whether a folder holds no more than what an import left that was killed."""
    owner = held_by(out)
    return (out / ASIDE).is_dir() and not (out / RUN_FILE).exists() and (owner is None or owner.alive() is False)


def _parts_in(out: Path) -> Iterator[Path]:
    return (path for path in out.glob("*/*.parquet") if part_of(path))


def _put_in_place(aside: Path, out: Path) -> None:
    """Everything that was written, run.json last: a folder without it is no run."""
    for path in sorted(aside.iterdir(), key=lambda p: p.name == RUN_FILE):
        if path.is_dir():
            (out / path.name).mkdir(exist_ok=True)
        for file in [path] if path.is_file() else sorted(path.iterdir()):
            if not file.name.startswith("."):
                file.rename(out / file.relative_to(aside))


def add_results(run: Path, sources: list[Parsed]) -> dict[str, Any]:
    """Add scores and answers of an evaluation to a run; the same results again replace themselves.

    Returns: what `dpo-diag import --json` prints.

    Raises:
        DiagError: no run, or a source that is more than results.
    """
    if not (run / RUN_FILE).is_file():
        raise DiagError("not a run folder", where=run, got="no run.json", usage=True)
    if logs := [s for s in sources if s.history is None or s.store.rows or s.pairs is not None]:
        got = f"{logs[0].files[0].name}, {logs[0].format}"
        raise DiagError(
            "only results of an evaluation are added to a run", got=got, hint="leave out --into", usage=True
        )
    with added_to(run) as (writer, _):
        for source in sources:
            assert source.history is not None
            _write_finished(writer, source.history, _label(source, source.history))
            if source.outputs is not None:
                writer.write("outputs", source.outputs, _label(source, source.outputs))
    return {
        "run": str(run), "format": sources[0].format, "rows": sum(s.n_rows for s in sources),
        "read": sum(s.n_read for s in sources), "skipped": [row for s in sources for row in s.skipped.listed],
        "merged": [str(f) for s in sources for f in s.files], "skipped_count": sum(s.skipped.count for s in sources),
        "duplicates": 0, "summary_rows": 0, "trainer": sources[0].trainer, "trainer_version": sources[0].version,
        "steps_from": sources[0].steps_from, "beta": None, "notes": [n for s in sources for n in s.notes],
    }  # fmt: skip


def _label(source: Parsed, rows: pd.DataFrame) -> str:
    """A file's name for these questions of this harness: measured again at the same step, they take its place."""
    columns = ["split", "name"] if "split" in rows else ["prompt_id"]
    content = rows[columns].drop_duplicates().to_csv(index=False)
    return f"{source.format}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _write(writer: RunWriter, sources: list[Parsed], options: Options, scores: pd.DataFrame | None) -> dict[str, Any]:
    history = History(sources)
    decided = decide(sources, history, options)
    _write_history(writer, history, decided.derived)
    finished = [s.history for s in sources if s.history is not None] + ([scores] if scores is not None else [])
    logged = {split for split, _ in history.metrics()}
    means = (batch_means(s.pairs, decided.loss, logged) for s in sources if s.pairs is not None)
    for rows in (*finished, *(m for m in means if m is not None)):
        _write_finished(writer, rows)
    for number, source in enumerate(sources):
        for table, frame in (("pairs", source.pairs), ("texts", source.texts)):
            for split, part in frame.groupby("split", sort=True, observed=True) if frame is not None else ():
                writer.write(table, part.reset_index(drop=True), str(split))
        if source.outputs is not None:
            writer.write("outputs", source.outputs, f"{source.format}-{number}")
        for split, facts in source.splits.items():
            writer.describe_split(split, role_from_name(split), **facts)
    skipped = Skipped()
    for source in sources:
        skipped.extend(source.skipped, source.files[0].name if len(sources) > 1 else None)
    origin = _source_info(sources, history, decided, options)
    logps = decided.reduction if any(name.startswith("logps/") for _, name in history.metrics()) else None
    if any(s.pairs is not None for s in sources):
        logps = options.logps or "sum"  # the tables' columns are sums by definition
    reference = next((s.details["reference_from"] for s in sources if "reference_from" in s.details), None)
    writer.update(
        **decided.run_fields(logps),
        model=from_document(ModelInfo, decided.facts.model, "model", Tolerance.MISFITS),
        reference={"source": reference},
        source=origin,
    )
    writer.finish("finished")
    n_more = skipped.count - len(skipped.listed)
    return {
        "run": str(writer.path),
        "format": origin.format,
        "rows": sum(s.n_rows for s in sources),
        "read": sum(s.n_read for s in sources) - history.duplicate_rows(),
        "skipped": skipped.listed + ([{"line": None, "why": f"and {n_more} more"}] if n_more else []),
        "merged": list(origin.files) if len(origin.files) > 1 else [],
        "skipped_count": skipped.count,
        "duplicates": origin.duplicates,
        "summary_rows": sum(len(s.store.summaries) for s in sources),
        "trainer": decided.trainer,
        "trainer_version": decided.trainer_version,
        "steps_from": next((s.steps_from for s in sources if s.steps_from), None),
        "beta": decided.beta,
        "notes": list(origin.notes),
    }


def _with_steps(sources: list[Parsed]) -> list[Parsed]:
    """The sources whose rows can stand beside one another: without those of counted rows, where others state steps."""
    kept = [s for s in sources if s.steps != "counted"]
    if not any(s.n_read for s in kept):
        return sources
    for left in (s for s in sources if s.steps == "counted"):
        kept[0].notes.append(f"{left.files[0].name} was left out: it states no steps (--logging-steps N gives them)")
    return kept


def _first_reason(sources: list[Parsed]) -> str:
    for source in sources:
        if source.skipped.listed:
            row = source.skipped.listed[0]
            return f"{row['why']} (line {row['line']})" if row["line"] else str(row["why"])
    return "no rows"


def _frames(columns: Iterator[tuple[str, str, pd.DataFrame, bool]]) -> Iterator[pd.DataFrame]:
    """History rows of (split, name, column, derived) in batches of about a quarter million."""
    waiting: list[tuple[str, str, pd.DataFrame, bool]] = []
    size = 0
    for split, name, column, derived in columns:
        for start in range(0, len(column), BATCH):
            part = column if len(column) <= BATCH else column.iloc[start : start + BATCH]
            waiting.append((split, name, part, derived))
            size += len(part)
            if size >= BATCH:
                yield _stacked(waiting)
                waiting, size = [], 0
    if waiting:
        yield _stacked(waiting)


def _stacked(parts: list[tuple[str, str, pd.DataFrame, bool]]) -> pd.DataFrame:
    stacked = pd.concat([frame for _, _, frame, _ in parts], ignore_index=True)
    rows = [len(frame) for _, _, frame, _ in parts]
    stacked["split"] = np.repeat(np.array([split for split, _, _, _ in parts], dtype=object), rows)
    stacked["name"] = np.repeat(np.array([name for _, name, _, _ in parts], dtype=object), rows)
    stacked["derived"] = np.repeat([derived for _, _, _, derived in parts], rows)
    if stacked["epoch"].isna().any():
        # Null, not NaN: an object column says "missing", a float column keeps NaN as a value.
        stacked["epoch"] = stacked["epoch"].astype(object).where(stacked["epoch"].notna(), None)
    return stacked


def _write_history(writer: RunWriter, history: History, derived: Mapping[Key, pd.DataFrame]) -> None:
    def columns() -> Iterator[tuple[str, str, pd.DataFrame, bool]]:
        for split, name in history.metrics():
            column = history.column(split, name)
            if column is not None:
                yield split, name, column, False
        for (split, name), column in derived.items():
            yield split, name, column, True

    for part, frame in enumerate(_frames(columns())):
        writer.write("history", frame, "all" if part == 0 else f"all{part}")


def _write_finished(writer: RunWriter, rows: pd.DataFrame, label: str | None = None) -> None:
    """Scores and other finished history rows, beside the log's own."""
    taken = len(list((writer.path / "history").glob("*.parquet")))
    rows = rows.copy()
    if "weight" in rows:
        rows["weight"] = rows["weight"].astype(object).where(rows["weight"].notna(), None)
    writer.write("history", rows, label or (f"extra{taken}" if taken else "extra"))


def _source_info(sources: list[Parsed], history: History, decided: Decisions, options: Options) -> SourceInfo:
    stores = [s.store for s in sources]
    summary = next((s.summaries[-1] for s in stores if s.summaries), None)
    listed = [row for s in sources for row in s.skipped.listed]
    n_skipped = sum(s.skipped.count for s in sources)
    return SourceInfo(
        files=tuple(str(f) for s in sources for f in s.files),
        format=sources[0].format,
        formats=tuple(s.format for s in sources),
        trainer=decided.trainer,
        trainer_version=decided.trainer_version,
        steps=next((s.steps for s in sources if s.steps), None),
        steps_from={s.files[0].name: s.steps_from for s in sources if s.steps_from},
        logps_why=decided.logps_why,
        said=decided.said,
        options={k: v for k, v in vars(options).items() if v not in (None, (), False)},
        names={k: v for s in stores for k, v in s.mapping().items()},
        kept_under_own_name=tuple(sorted({k for s in stores for k in s.unknown_keys()})),
        left_out=tuple(sorted({k for s in stores for k in s.dropped_keys()})),
        summary={k: _finite(v) for k, v in summary.items()} if summary else None,
        duplicates=history.duplicate_rows() + sum(s.n_duplicates for s in sources),
        backtracks=tuple(history.backtracks()),
        read=sum(s.n_read for s in sources),
        skipped=tuple(listed) if len(listed) == n_skipped else (),
        skipped_count=n_skipped,
        beta_check=decided.check.to_dict() if decided.check is not None else None,
        nll_weight=decided.nll_weight,
        notes=tuple([n for s in sources for n in s.notes] + _left_out(sources) + _notes(history, decided)),
        details={k: v for s in reversed(sources) for k, v in s.details.items()},
    )


def _left_out(sources: list[Parsed]) -> list[str]:
    """Rows that are neither read nor told anywhere else."""
    notes = []
    summaries = sum(len(s.store.summaries) for s in sources)
    if summaries > 1:
        notes.append(f"{summaries} final summary rows: the last one counts")
    if empty := sum(s.store.empty for s in sources):
        notes.append(f"{plural(empty, 'row')} without a number of a metric left out")
    return notes


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _notes(history: History, decided: Decisions) -> list[str]:
    """What a reader should know that only shows when all sources are read."""
    notes = []
    if differing := history.differing_rows():
        notes.append(f"{differing} repeated rows differ from the one kept (the last of each step)")
    for name, n in history.disagreeing_values().items():
        notes.append(f"{name}: {n} values differ from the first source's, which were kept")
    check = decided.check
    if check is not None and not check.constant:
        notes.append(
            f"the reference derived with beta {check.beta:g} is not constant over {check.evaluations} evaluations of "
            f"{check.split} (spread {check.spread:.3g} nats): wrong beta, or not a sum-log-prob loss"
        )
    if _is_swapped(history):
        notes.append("rewards/margins is rejected - chosen in this log: chosen and rejected are swapped in it")
    return notes


def _is_swapped(history: History) -> bool:
    """margins = chosen - rejected must hold; where its negative holds at every row, the sides are swapped."""
    rows = history.aligned(TRAIN_SPLIT, "rewards/chosen", "rewards/rejected", "rewards/margins")
    if rows is None:
        return False
    margins = rows["rewards/margins"]
    off = (rows["rewards/chosen"] - rows["rewards/rejected"] + margins).abs()
    clear = np.isfinite(margins) & (margins.abs() > 1e-3) & off.notna()
    return bool(clear.sum() >= 3 and (off <= 1e-2 * margins.abs())[clear].mean() > 0.9)
