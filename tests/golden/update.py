"""`python -m tests.golden.update [NAME ...]`: rewrite the snapshots that differ and print what differed."""

from __future__ import annotations

import fnmatch
import sys
import tempfile
from pathlib import Path

from tests.golden.cases import CASES, document_of
from tests.golden.snapshot import FOLDER, differences, read, snapshot, write


def main(patterns: list[str]) -> int:
    """Rewrite; names are glob patterns, all snapshots without any."""
    changed = 0
    for name in [n for n in CASES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]:
        with tempfile.TemporaryDirectory() as folder:
            document, places = document_of(name, Path(folder))
            new = snapshot(document, places=places)
        old = read(name)
        found = differences(old, new)
        if not found:
            continue
        changed += 1
        print(f"{name}: {len(found)} differences" if (FOLDER / f"{name}.json").is_file() else f"{name}: new")
        if (FOLDER / f"{name}.json").is_file():
            print("\n".join(f"  {line}" for line in found))
        write(name, new)
    for stale in sorted({p.name.split(".")[0] for p in FOLDER.iterdir()} - set(CASES)) if not patterns else []:
        print(f"{stale}: no longer a case, removed")
        for file in FOLDER.glob(f"{stale}.*"):
            file.unlink()
    print(f"{changed} of {len(CASES)} snapshots rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
