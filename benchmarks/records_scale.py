"""A run that logs every step: files, bytes a row and seconds to read `.history`, with merging and without it.

    python benchmarks/records_scale.py [--steps 5000] [--eval-every 50] [--rounds 3] [--json]

The same rows are written twice, one file a log call: `apart` keeps every file, `merged` is what a run does. Writing is
measured in blocks of 100 steps taken in turns, reading in turns; CPU seconds of this process, median and range. `one
file` is the same table written at once: what merging can reach. `killed` is a merged run whose writer never ended.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from dpo_diag import RunWriter, load_run
from dpo_diag.records import merging
from dpo_diag.records.files import write_parquet

NAMES = (
    "loss", "learning_rate", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins",
    "rewards/accuracies", "logps/chosen", "logps/rejected", "ce/chosen", "ce/rejected", "ppl_token/chosen",
    "ppl_token/rejected", "entropy", "num_tokens", "top1/chosen", "top1/rejected", "loss_residual",
)  # fmt: skip
BLOCK = 100


def write(writer: RunWriter, steps: range, every: int, rng: np.random.Generator) -> None:
    """One file a step, and one an evaluation."""
    for step in steps:
        for split in ("train", "eval") if step % every == 0 else ("train",):
            values = rng.normal(size=len(NAMES))
            frame = pd.DataFrame({"step": step, "split": split, "name": NAMES, "value": values, "weight": 16.0})
            writer.write("history", frame, split)


def size(run: Path) -> tuple[int, int]:
    """(files, bytes) of history/."""
    files = load_run(run).files("history")
    return len(files), sum(f.stat().st_size for f in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Path(folder) / name for name in ("apart", "merged", "killed")}
        writers = {}
        for name, path in runs.items():
            with patch.object(merging, "MANY", 10**9 if name == "apart" else merging.MANY):
                writers[name] = RunWriter(path)
                write(writers[name], range(1), 2, np.random.default_rng(0))
        rngs = {name: np.random.default_rng(0) for name in runs}
        writing = dict.fromkeys(runs, 0.0)
        for first in range(1, args.steps + 1, BLOCK):
            for name, writer in writers.items():
                began = time.process_time()
                write(writer, range(first, min(first + BLOCK, args.steps + 1)), args.eval_every, rngs[name])
                writing[name] += time.process_time() - began
        began = time.process_time()
        writers["merged"].finish()
        writing["merged"] += time.process_time() - began
        rows = len(load_run(runs["merged"]).history)
        write_parquet(Path(folder) / "one.parquet", load_run(runs["apart"]).arrow("history"))
        reading: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, path in runs.items():
                began = time.process_time()
                assert len(load_run(path).history) == rows
                reading[name].append(time.process_time() - began)
        found: dict[str, Any] = {"rows": rows, "one_file_bytes_per_row": size_of(Path(folder) / "one.parquet") / rows}
        for name, path in runs.items():
            files, n_bytes = size(path)
            found[name] = {
                "files": files, "bytes_per_row": n_bytes / rows, "write_cpu_s": writing[name],
                "read_cpu_s": statistics.median(reading[name]), "read_range": [min(reading[name]), max(reading[name])],
            }  # fmt: skip
        found["read_ratio"] = found["merged"]["read_cpu_s"] / found["apart"]["read_cpu_s"]
        found["write_ratio"] = found["merged"]["write_cpu_s"] / found["apart"]["write_cpu_s"]
    if args.json:
        print(json.dumps(found))
        return
    print(f"{args.steps} steps, {rows:,} rows; one file: {found['one_file_bytes_per_row']:.1f} bytes a row")
    print(f"{'':>8} {'files':>6} {'bytes/row':>9} {'write CPU s':>11} {'read CPU s':>10}  range")
    for name in runs:
        f = found[name]
        low, high = f["read_range"]
        print(
            f"{name:>8} {f['files']:>6} {f['bytes_per_row']:>9.1f} {f['write_cpu_s']:>11.2f} {f['read_cpu_s']:>10.3f}"
            f"  {low:.3f} to {high:.3f}"
        )
    print(f"merged : apart, reading {found['read_ratio']:.3f}, writing {found['write_ratio']:.2f}")


def size_of(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


if __name__ == "__main__":
    main()
