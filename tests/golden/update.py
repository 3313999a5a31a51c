"""`python -m tests.golden.update [NAME ...]`: rewrite the snapshots that differ and print what differed."""

from __future__ import annotations

import fnmatch
import sys
import tempfile
from pathlib import Path

from tests.golden.cases import CASES, compared
from tests.golden.snapshot import FOLDER, differences, read, write


def main(patterns: list[str]) -> int:
    """Rewrite the snapshots whose names fit a glob pattern, all without any; those of no case are removed."""
    changed = 0
    for name in [n for n in CASES if not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)]:
        is_new = not (FOLDER / f"{name}.json").is_file()
        with tempfile.TemporaryDirectory() as folder:
            snapshot, found = compared(name, Path(folder))
        if not found:
            continue
        changed += 1
        print(f"{name}: new" if is_new else "\n".join([f"{name}: {len(found)} differences", *found]), flush=True)
        write(name, snapshot)
        assert not differences(read(name), snapshot), f"{name} does not come back as it was written"
    if not patterns:
        for file in FOLDER.iterdir():
            if file.name.split(".")[0] not in CASES:
                print(f"{file.name}: of no case, removed")
                file.unlink()
    print(f"{changed} of {len(CASES)} snapshots rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
