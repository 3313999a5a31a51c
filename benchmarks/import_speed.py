"""How fast a long console log is imported: seconds, CPU seconds and peak memory, on a log generated for it.

    python benchmarks/import_speed.py --megabytes 1024 --kind frames

`frames` is what a training prints: ten progress frames to a row. `rows` is the worst case: rows and nothing else.
The log and the run go to a temporary folder (`--folder` names another disk) and are removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_SECONDS = 60.0
LIMIT_MEGABYTES = 500.0
_RUN = """
import json, resource, sys, time
from dpo_diag.importers import import_path
start = time.perf_counter()
result = import_path(sys.argv[1], sys.argv[2])
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime,
                  "megabytes": usage.ru_maxrss / 1024, "read": result["read"], "rows": result["rows"]}))
"""


def write_log(path: Path, size: int, kind: str) -> int:
    """A console log of about `size` bytes; returns its rows. Every value differs from row to row, no step repeats."""
    rows = size // (1500 if kind == "frames" else 430) + 1
    interval = 10 if kind == "frames" else 1
    total = rows * interval
    written = count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        while written < size:
            step = (count + 1) * interval
            parts = []
            if kind == "frames":
                for done in range(step - interval + 1, step + 1):
                    percent = 100 * done // total
                    bar = "█" * (percent // 10)
                    parts.append(f"\r{percent:3d}%|{bar:<10}| {done}/{total} [1:02:03<4:05:06,  1.23s/it]")
                parts.append("\r" + " " * 60 + "\r")
            fall, rate = 0.693 * math.exp(-step / total), 5e-6 * (1 - step / total)
            parts.append(
                f"{{'loss': '{fall:.4g}', 'grad_norm': '{1 + fall:.4g}', 'learning_rate': '{rate:.4g}'"
                f", 'logits/chosen': '-1.724', 'logits/rejected': '-1.708', 'rewards/chosen': '{-step / total:.4g}',"
                f" 'rewards/rejected': '{-2 * step / total:.4g}', 'rewards/accuracies': '0.7125',"
                f" 'rewards/margins': '{step / total:.4g}', 'logps/chosen': '{-129.2 - 10 * step / total:.6g}',"
                f" 'logps/rejected': '{-165.3 - 20 * step / total:.6g}', 'epoch': '{step / total:.8g}'}}\n"
            )
            text = "".join(parts)
            file.write(text)
            written += len(text.encode())
            count += 1
    return count


def measure(path: Path, out: Path) -> dict[str, float]:
    """Import in a process of its own, so that its peak memory is the import's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(path), str(out)], check=True, capture_output=True, text=True, env=environment
    )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> int:
    """Generate, import, print one line of numbers; exit 1 beyond the limits at 1 GB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--kind", choices=("frames", "rows"), default="frames")
    parser.add_argument("--folder", type=Path, help="where the temporary log lies")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="import-speed-") as folder:
        log = Path(folder) / "train.log"
        start = time.perf_counter()
        rows = write_log(log, arguments.megabytes << 20, arguments.kind)
        print(f"generated {rows} rows, {log.stat().st_size / 2**20:.0f} MiB in {time.perf_counter() - start:.0f} s")
        found = measure(log, Path(folder) / "run")
    scale = arguments.megabytes / 1024
    print(
        f"{arguments.kind}: {found['seconds']:.1f} s, {found['cpu']:.1f} CPU s, peak {found['megabytes']:.0f} MiB, "
        f"{found['read']} of {found['rows']} rows"
    )
    too_slow = found["cpu"] > LIMIT_SECONDS * max(scale, 0.1)
    return 1 if too_slow or found["megabytes"] > LIMIT_MEGABYTES or found["read"] != rows else 0


if __name__ == "__main__":
    sys.exit(main())
