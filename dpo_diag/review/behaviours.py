"""The behaviours that a review looks for: a list that the user writes once, kept with the run."""

from __future__ import annotations

import os
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.records.files import replacing
from dpo_diag.review.judgements import FOLDER

KEYS = "34567890qweyiopadfghjklzxcvm"
"""A key per behaviour, in the order of the list; 1 2 t b s n u r are verdicts and commands."""
FILE = "behaviours.txt"
MAX_CHARS = 80


def load_behaviours(run: str | os.PathLike[str], file: str | os.PathLike[str] | None = None) -> list[str]:
    """The list: from `file` (which is then kept with the run for the next sessions and reviewers), or the kept one.

    One behaviour a line; blank lines and lines that start with # are passed over. [] where there is none.

    Raises:
        DiagError: no such file, more behaviours than keys, one that is overlong or occurs twice.
    """
    kept = Path(run) / FOLDER / FILE
    path = Path(file) if file is not None else kept
    if not path.is_file():
        if file is None:
            return []
        raise DiagError("no such file", where=file, expected="one behaviour a line", usage=True)
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DiagError("the list of behaviours is not UTF-8", where=path, got=error) from error
    names = [line for line in lines if line and not line.startswith("#")]
    for i, name in enumerate(names):
        if len(name) > MAX_CHARS:
            raise DiagError("a behaviour's name is too long", where=path, got=f"{len(name)} characters",
                            expected=f"at most {MAX_CHARS}")  # fmt: skip
        if name in names[:i]:
            raise DiagError("duplicate behaviour", where=path, got=name)
    if len(names) > len(KEYS):
        raise DiagError("too many behaviours", where=path, got=len(names), expected=f"at most {len(KEYS)}, one per key")
    if file is not None:
        with replacing(kept) as part:
            part.write_text("\n".join(names) + "\n", encoding="utf-8")
    return names
