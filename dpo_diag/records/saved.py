"""The checkpoints that a training left in its run folder: their steps and sizes, read without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dpo_diag.documents import parse_json

MANIFEST = "dpo_diag_manifest.json"
"""File in a checkpoint folder, written last: {"files": {relative path: {"bytes": size, "sha256": hexadecimal}}}."""
_NAMED = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Saved:
    """One checkpoint folder.

    Attributes:
        size: bytes of its files.
        broken: why it is not whole, as far as names and sizes tell; None: nothing is amiss.
    """

    step: int
    folder: Path
    size: int
    broken: str | None = None


def saved_checkpoints(run: Path) -> list[Saved]:
    """Those in RUN/checkpoints, by step; [] where there are none."""
    found = []
    for folder in (run / "checkpoints").glob("checkpoint-*"):
        if (match := _NAMED.fullmatch(folder.name)) and folder.is_dir():
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            found.append(Saved(int(match.group(1)), folder, size, _amiss(folder)))
    return sorted(found, key=lambda saved: saved.step)


def _amiss(folder: Path) -> str | None:
    if not (folder / "trainer_state.json").is_file():
        return "it was not written to its end"
    manifest = folder / MANIFEST
    try:
        files = parse_json(manifest.read_text(encoding="utf-8"))["files"] if manifest.is_file() else {}
        for name, entry in files.items():
            path = folder / str(name)
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != int(entry["bytes"]):
                return f"{name} is cut"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    return None
