"""findings.json: the last explanation of a run, and of what it was made, so that unchanged records are not read again.

The identity covers the run's files (names, sizes, times, inodes), this package's code, the libraries that compute, and
what was asked. Whatever is not known to be the same is computed again; with plugins, whose code this cannot see,
everything is.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import dpo_diag
from dpo_diag.config import conf_dir
from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import read_json
from dpo_diag.records.files import write_json
from dpo_diag.registry import plugins
from dpo_diag.thresholds import defaults, load_thresholds

FINDINGS = "findings.json"
MADE_FROM = "made_from"
_NOT_READ = (FINDINGS, "report.html", "checkpoints", "tracked.json", "wandb", "swanlab", "tensorboard")
"""What is in a run folder that no explanation reads."""
_LIBRARIES = ("numpy", "pandas", "pyarrow", "scipy")

State = tuple[tuple[str, int, int, int, int], ...]


def file_states(folder: Path, left_out: tuple[str, ...] = (FINDINGS,)) -> State:
    """(name, size, time of change of content and of the file, inode) of every file below a folder, in order.

    Args:
        left_out: names directly below the folder that do not count; hidden files and folders never do.
    """
    return tuple(sorted(_states(folder, "", set(left_out), set())))


def _states(folder: Path, prefix: str, left_out: set[str], seen: set[tuple[int, int]]) -> Iterator[Any]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or (not prefix and entry.name in left_out):
                continue
            try:
                state = entry.stat()
            except FileNotFoundError:  # merged into another since it was listed, or a link to nothing
                continue
            if not entry.is_dir():
                yield prefix + entry.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
            elif (place := (state.st_dev, state.st_ino)) not in seen:  # links may form a circle
                seen.add(place)
                yield from _states(Path(entry.path), f"{prefix}{entry.name}/", left_out, seen)


def made_from(
    run: Path, from_step: int | str | None = None, to_step: int | None = None, split: str | None = None,
    thresholds: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """The identity of an explanation of these steps, this split and these thresholds; None where it cannot be known."""
    if plugins():
        return None
    usual = defaults()
    other = {name: value for name, value in load_thresholds(thresholds).items() if value != usual[name]}
    states = file_states(run, _NOT_READ)
    return {
        "files": len(states),
        "records": hashlib.sha256(repr(states).encode()).hexdigest(),
        "code": _code(),
        "libraries": {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}},
        "asked": {"run": str(run), "from": from_step, "to": to_step, "split": split, "thresholds": other},
    }


def _code() -> str:
    """A hash of this package's files and of the thresholds."""
    package = Path(dpo_diag.__file__).parent
    found = hashlib.sha256(dpo_diag.__version__.encode())
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.yaml"), conf_dir() / "checks" / "default.yaml"]):
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def read_findings(run: Path, identity: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The document that stands in a run, where it was made from exactly this; else None."""
    try:
        document = read_json(run / FINDINGS)
    except (FileNotFoundError, DiagError):
        return None
    if identity is None or not isinstance(document, dict) or document.pop(MADE_FROM, None) != identity:
        return None
    return document


def asked_of(run: Path) -> dict[str, Any]:
    """Of what steps, split and thresholds the explanation in a run is, as `made_from` and `explain_run` take them; {}
    where there is none, or it does not say."""
    try:
        asked = read_json(run / FINDINGS)[MADE_FROM]["asked"]
        return {
            "from_step": asked["from"], "to_step": asked["to"], "split": asked["split"],
            "thresholds": asked["thresholds"] or None,
        }  # fmt: skip
    except (FileNotFoundError, DiagError, KeyError, TypeError):
        return {}


def write_findings(run: Path, document: Mapping[str, Any], identity: Mapping[str, Any] | None) -> bool:
    """Write a document with what it was made from (None, damaged files, or a run that is not finished, of which no file
    says whether it still runs: it is not taken again); False, with a line
    on standard error, where the folder cannot be written to: no reason not to print it."""
    made = {MADE_FROM: identity} if identity is not None and not {"damaged", "unfinished"} & document.keys() else {}
    try:
        write_json(run / FINDINGS, {**document, **made})
    except OSError as error:
        print(f"dpo-diag explain: findings not written: {error}", file=sys.stderr)
        return False
    return True
