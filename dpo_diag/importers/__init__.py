"""Any trainer's log or sums becomes a run: one foreign format a file, one alias table, one way to write. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.archive import is_zip, unzip
from dpo_diag.importers.folder import read_folder
from dpo_diag.importers.formats.wandb_run import is_run_path
from dpo_diag.importers.log_format import FORMATS, Head, LogFormat, detect, register
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.scores import read_scores
from dpo_diag.importers.task_results import RESULTS, check_apart
from dpo_diag.importers.writing import add_results, import_folder, was_killed, write_run
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.names import shortened
from dpo_diag.records.run_lock import writing
from dpo_diag.records.scratch import scratch_folder
from dpo_diag.records.text_files import Skipped

__all__ = ["FORMATS", "Head", "LogFormat", "Options", "Parsed", "default_out", "import_path", "register"]


def import_path(
    path: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    as_name: str | None = None,
    options: Options | None = None,
    into: str | Path | None = None,
) -> dict[str, Any]:
    """Import a file, a folder or several of one run; returns what `dpo-diag import --json` prints.

    Args:
        path: log file, archive, checkpoint or output folder, W&B run (`entity/project/run`), or several of them.
        out: run folder to write; `runs/imported/<name>` if None.
        as_name: name of the format (a key of `FORMATS`); recognised if None.
        into: a run that evaluation results are added to, instead of a run of their own.
        options: loss, beta and what else the source does not say.

    Raises:
        DiagError: nothing there, an unknown format, or no row could be read.
    """
    options = options or Options()
    paths = [Path(p) for p in ([path] if isinstance(path, (str, Path)) else path)]
    if not paths:
        raise DiagError("no file named", expected="a log, a folder or several of one run", usage=True)
    if into is not None:
        if not (Path(into) / RUN_FILE).is_file():
            raise DiagError("not a run folder", where=into, got="no run.json", usage=True)
        with writing(into), scratch_folder("import") as scratch:
            return add_results(Path(into), _sources(paths, as_name, options, scratch)[0])
    with (
        import_folder(Path(out or default_out(paths[0])), named=bool(out)) as folder,
        scratch_folder("import") as scratch,
    ):
        sources, scores = _sources(paths, as_name, options, scratch)
        return write_run(folder, sources, options, scores)


def _sources(
    paths: Sequence[Path], as_name: str | None, options: Options, scratch: Path
) -> tuple[list[Parsed], pd.DataFrame | None]:
    """What the files hold, the main one first, and task scores that are rows."""
    skipped = Skipped()
    sources: list[Parsed] = []
    for i, one in enumerate(paths):
        sources += _read(one, as_name, options, scratch / str(i), skipped)
    if options.run is not None and not any(source.run for source in sources):
        where, expected = f"--run, {paths[0]}", "a source that holds several runs"
        raise DiagError("the log names no runs", where=where, got=options.run, expected=expected, usage=True)
    check_apart(sources)
    # Where two sources hold a value, the one with more digits is kept.
    sources.sort(key=lambda source: FORMATS[source.format].rounding)
    scores = None
    if options.scores is not None and _is_results(options.scores):
        sources += _read(options.scores, None, options, scratch / "scores", skipped)
    elif options.scores is not None:
        scores = read_scores(options.scores, skipped, options.split)
    sources[0].skipped.extend(skipped)
    return sources, scores


def _is_results(path: Path) -> bool:
    """Whether scores are results of an evaluation harness, not rows of step, name, value, n."""
    return path.is_dir() or is_zip(path) or (path.is_file() and detect(path).name in RESULTS)


_SUFFIXES = (
    ".gz", ".bz2", ".xz", ".zip", ".json", ".jsonl", ".log", ".txt", ".csv", ".tsv", ".parquet", ".wandb", ".db", ".npy"
)  # fmt: skip


def default_out(path: Path) -> Path:
    """`runs/imported/<name>`, with a number behind it where that is taken."""
    resolved = path.resolve()
    name = resolved.name
    while Path(name).suffix in _SUFFIXES:
        name = Path(name).stem
    if name in ("trainer_state", "trainer_log", "logging") or name.startswith("checkpoint-"):
        name = f"{resolved.parent.name}_{name}" if resolved.parent.name else name
    name = re.sub(r"[^\w.-]+", "_", name).strip("._") or "log"
    base = Path("runs") / "imported" / shortened(name, 80)
    taken = 1
    out = base
    while out.exists() and not was_killed(out):
        taken += 1
        out = base.with_name(f"{base.name}-{taken}")
    return out


def _read(path: Path, as_name: str | None, options: Options, scratch: Path, skipped: Skipped) -> list[Parsed]:
    if not path.exists():
        if as_name == "wandb" or (as_name is None and is_run_path(str(path))):
            return [FORMATS["wandb"].read(path, options)]
        raise DiagError("no such file or folder", where=path, hint="check the path", usage=True)
    if path.is_file() and is_zip(path):
        unzip(path, scratch, skipped)
        return read_folder(scratch, as_name, options, shown=path)
    if path.is_dir():
        return read_folder(path, as_name, options, shown=path)
    if not path.is_file():
        raise DiagError("not a regular file", where=path, hint="name a file or a folder")
    log_format = FORMATS[as_name] if as_name else detect(path)
    return [log_format.read(path, options)]
