"""Run folders behind a URL that fsspec opens: s3://, gs://, az://, hf://, ssh://, memory://, file://.

Records are written and read on this machine; a URL is where a run is put when it is whole, and taken from.
"""

from __future__ import annotations

import atexit
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.scratch import scratch_folder

_STAYS = "checkpoints"
"""The folder of a run that is not moved: weights are not records."""


def is_url(name: str | os.PathLike[str]) -> bool:
    """Whether this names a place for fsspec, not a path."""
    return isinstance(name, str) and "://" in name


def opened(place: str) -> tuple[Any, str]:
    """(the file system of fsspec, the path within it) of a path or URL.

    Raises:
        DiagError: fsspec, or what the URL's scheme needs, is not installed; an unknown scheme.
    """
    require("fsspec", f"reading and writing {place}" if is_url(place) else "a work list")
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise DiagError("this URL cannot be opened", where=place, got=error) from error
    return fs, str(path).rstrip("/")


def is_run(url: str) -> bool:
    """Whether a run lies there."""
    fs, path = opened(url)
    fs.invalidate_cache()
    return bool(fs.exists(f"{path}/{RUN_FILE}"))


def upload(folder: Path, url: str) -> None:
    """Put a run's records where the URL says, in place of what is there; run.json comes last, and says that it is all.

    Files of the tables that are no longer in the folder (merged into others) are removed. Uploading again after being
    killed gives the same.
    """
    fs, path = opened(url)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and _moves(file.relative_to(folder))]
    names = {str(file.relative_to(folder).as_posix()): file for file in files}
    fs.makedirs(path, exist_ok=True)
    for name in sorted(names, key=lambda n: n == RUN_FILE):
        fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        fs.put_file(str(names[name]), f"{path}/{name}")
    for there in _listed(fs, path):
        if there.endswith(".parquet") and there not in names:
            fs.rm_file(f"{path}/{there}")


def download(url: str, folder: Path) -> Path:
    """Bring a run's records here; returns the folder.

    Raises:
        DiagError: no run lies there.
    """
    if not is_run(url):
        raise DiagError("no run folder", where=url, expected="a folder with run.json", hint="check the URL")
    fs, path = opened(url)
    for name in _listed(fs, path):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{path}/{name}", str(target))
    return folder


def at_hand(path: str | os.PathLike[str]) -> Path:
    """A run's folder on this machine: the path as it is; of a URL, a folder of this process with its records, which is
    removed at the process's end.

    Raises:
        DiagError: a URL where no run lies.
    """
    if not is_url(path):
        return Path(path)
    ending = ExitStack()
    atexit.register(ending.close)
    return download(str(path), ending.enter_context(scratch_folder("run")))


def _listed(fs: Any, path: str) -> list[str]:
    """Names, below `path`, of the files that move."""
    fs.invalidate_cache()
    root = str(fs._strip_protocol(path)).rstrip("/")
    names = [str(found)[len(root) :].lstrip("/") for found in fs.find(path)]
    return [name for name in names if name and _moves(Path(name))]


def _moves(name: Path) -> bool:
    hidden = name.name.startswith(".") or (name.parts[0].startswith(".") and name.parts[0] != ".hydra")
    return not hidden and name.parts[0] != _STAYS
