"""Which files a data path names: one, several, a glob, and whether they can hold rows."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.records.row_files import SUFFIXES, suffix_of
from dpo_diag.text import some

Paths = str | Path | Sequence[str | Path]


def expand(paths: Paths) -> list[Path]:
    """The files that a path, a list of paths, or text with commas between paths names; globs in alphabetical order.

    Raises:
        DiagError: a glob that matches nothing, or no path at all.
    """
    if isinstance(paths, (str, Path)):
        text = str(paths)
        names = [text] if Path(text).expanduser().exists() else [part.strip() for part in text.split(",")]
    else:
        names = [str(path) for path in paths]
    files: dict[Path, None] = {}
    for name in filter(None, names):
        path = Path(name).expanduser()
        if path.exists() or not glob.has_magic(name):
            files[path] = None
            continue
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not found:
            raise DiagError("no file matches", where="data.path", got=name, hint="check the pattern (it is relative to "
                            "where you started)")  # fmt: skip
        files |= dict.fromkeys(found)
    if not files:
        raise DiagError("no data file named", where="data.path", expected="a file of preference pairs", usage=True)
    return list(files)


def check_file(path: Path) -> None:
    """A file of rows can be read.

    Raises:
        DiagError: it is absent, a folder, of an unknown suffix, or empty.
    """
    if not path.exists():
        raise DiagError("no such data file", where=path, hint="check data.path (it is relative to where you started)")
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if suffix_of(p) in SUFFIXES)
        hint = (
            f"name the files inside, with a glob or one by one: {some(inside)}"
            if inside
            else "use data=hub for a dataset folder"
        )
        raise DiagError("the data path is a folder", where=path, expected="a file", hint=hint)
    if suffix_of(path) not in SUFFIXES:
        expected = f"{', '.join(SUFFIXES)} (compressed or not)"
        raise DiagError("unknown data format", where=path, got=suffix_of(path) or "no suffix", expected=expected)
    if path.stat().st_size == 0:
        raise DiagError("the data file is empty", where=path, expected="preference pairs")
