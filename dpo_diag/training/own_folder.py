"""Which of the numbered run folders is a training's own: an unused one for a new training, for a resumed one the folder
whose rows are its log's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_diag.records import Run
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.process import this
from dpo_diag.records.run_lock import held_by
from dpo_diag.records.schemas import TRAIN_SPLIT

_MANY = 10_000


def holds_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run's."""
    return os.path.isfile(os.path.join(folder, RUN_FILE))


def unused(folder: Path) -> Path:
    """The folder, with the first number behind its name under which there is no run, nor one that begins right now."""
    return next(name for name in _numbered(folder) if not holds_run(name) and not _is_begun(name))


def _is_begun(folder: Path) -> bool:
    """Whether another process holds the folder."""
    owner = held_by(folder)
    return owner is not None and owner != this() and owner.alive() is not False


def continued(folder: Path, log: Sequence[Mapping[str, Any]]) -> Path:
    """The folder that a resumed training goes on with, the last one where several may be it.

    A run whose training loss at a step is another one than the log's is another training's. One that shares no step
    with the log may be this one; without any that may be, an unused folder.

    Args:
        log: transformers' `log_history`, as the checkpoint has it: dicts of step, loss, ...
    """
    logged = {int(row["step"]): float(row["loss"]) for row in log if "loss" in row and "step" in row}
    best, found = 0, None
    for name in _numbered(folder):
        if not holds_run(name):
            break
        shared = _shared(name, logged)
        if shared is not None and (found is None or min(shared, 1) >= best):
            best, found = min(shared, 1), name
    return unused(folder) if found is None else found


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    for number in range(2, _MANY):
        yield folder.with_name(f"{folder.name}-{number}")


def _shared(folder: Path, logged: Mapping[int, float]) -> int | None:
    """Steps whose loss a run and a log have in common; None where one is not the same."""
    rows = Run(folder).history
    rows = rows[(rows["split"] == TRAIN_SPLIT) & (rows["name"] == "loss")]
    here = dict(zip(rows["step"].astype(int), rows["value"].astype(float), strict=True))
    common = here.keys() & logged.keys()
    # repr: two NaN are one.
    return len(common) if all(repr(here[step]) == repr(logged[step]) for step in common) else None
