"""Which folders of runs a path or a glob names; nothing of them is read."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.records.files import RUN_FILE


def run_folders(patterns: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], list[str]]:
    """Folders of runs, of a multirun's folder its jobs, each once however it was named; and what was named but is,
    holds and lies in no run. A folder that Hydra made counts, whether or not a run was written.

    Raises:
        DiagError: nothing found.
    """
    patterns = list(patterns)
    named = sorted({Path(p) for text in patterns for p in glob.glob(str(text), recursive=True)})
    found: dict[Path, Path] = {}
    others = []
    for path in named:
        jobs = [path] if _is_run(path) else sorted(p for p in path.glob("*") if _is_run(p))
        found |= {job.resolve(): found.get(job.resolve(), job) for job in jobs}
        if not jobs and not path.is_file():
            others.append(path)
    absolute = [path.resolve() for path in others]
    strangers = [
        str(path)
        for path, whole in zip(others, absolute, strict=True)
        if not any(run.is_relative_to(whole) or whole.is_relative_to(run) for run in found)
    ]
    if not found:
        raise DiagError(
            "no run found",
            where=", ".join(map(str, patterns)),
            got=f"no run in {', '.join(strangers[:3])}" if strangers else None,
            hint="name run folders, a multirun's folder or a glob, e.g. 'runs/sql_dpo/*/*'",
        )
    return sorted(found.values()), strangers


def _is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file() or (folder / ".hydra").is_dir()
