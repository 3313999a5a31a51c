"""How explain scales with token rows: rows, seconds, peak memory, beside the same work done the naive way in pandas.

    python benchmarks/explain_scale.py                      # 1 and 10 million rows, 20 checkpoints
    python benchmarks/explain_scale.py --rows 1e6,1e7,1e8 --checkpoints 20 --no-naive

Each measurement runs in a fresh process, so that peak memory (resident set, from the kernel) is that measurement's own.
The runs are synthetic: per-checkpoint files as a trained run has them, pairs that share a prefix and a suffix.
The naive way reads all token rows into one DataFrame, merges first and last checkpoint and groups by role.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag import RunWriter, load_run

TOKENS = 250
"""Tokens of an answer."""


def write_run(path: Path, rows: int, checkpoints: int, seed: int = 0) -> int:
    """A run with about `rows` token rows over `checkpoints` steps; returns how many it wrote."""
    rng = np.random.default_rng(seed)
    n_pairs = max(2, rows // (2 * TOKENS * checkpoints))
    ids = np.array([f"{i:016x}" for i in range(n_pairs)])
    chosen = rng.integers(3, 49152, (n_pairs, TOKENS), dtype=np.int32)
    rejected = chosen.copy()
    rejected[:, 60:110] = rng.integers(3, 49152, (n_pairs, 50), dtype=np.int32)
    tokens = np.stack([chosen, rejected], axis=1)
    tokens[:, :, -1] = 2
    base = -rng.exponential(0.5, tokens.shape)
    drift = np.zeros(tokens.shape)
    drift[:, 0, 60:] = -0.1 * rng.random((n_pairs, TOKENS - 60))
    drift[:, 1, 60:] = -0.8 * rng.random((n_pairs, TOKENS - 60))
    side = np.array(["chosen", "rejected"])
    frame_ids = pd.Categorical.from_codes(np.repeat(np.arange(n_pairs), 2 * TOKENS), categories=list(ids))
    frame_sides = pd.Categorical.from_codes(np.tile(np.repeat([0, 1], TOKENS), n_pairs), categories=list(side))
    writer, written = RunWriter(path), 0
    for k in range(checkpoints):
        logp = (base + drift * (k / max(checkpoints - 1, 1))).astype(np.float32)
        frame = pd.DataFrame(
            {
                "step": k * 10, "split": "eval", "role": "policy", "pair_id": frame_ids, "side": frame_sides,
                "position": np.tile(np.arange(TOKENS), 2 * n_pairs), "token_id": tokens.ravel(), "logp": logp.ravel(),
                "entropy": rng.random(logp.size, dtype=np.float32), "is_top1": logp.ravel() > -0.5,
            }
        )  # fmt: skip
        writer.write("tokens", frame, split="eval")
        written += len(frame)
        sums = logp.astype(np.float64).sum(axis=2)
        for role in ("policy", "ref") if k == 0 else ("policy",):
            pairs = pd.DataFrame(
                {
                    "step": k * 10, "split": "eval", "role": role, "pair_id": np.repeat(ids, 2),
                    "side": np.tile(side, n_pairs), "sum_logp": sums.ravel(), "n_tokens": TOKENS, "n_bytes": 4 * TOKENS,
                }
            )  # fmt: skip
            writer.write("pairs", pairs, split=f"eval.{role}")
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1}, tokenizer={"eos_token_id": 2})
    writer.finish()
    return written


def streamed(path: Path) -> float:
    """dpo_diag's own explanation; returns the chosen log-prob change at and after the first difference, in nats."""
    from dpo_diag.diagnosis import explain

    document = explain(load_run(path))
    found = document["tokens"]["chosen_after_first_difference"]
    return float(found["delta_at"] + found["delta_after"])


def naive(path: Path) -> float:
    """The same number and the same role sums from one big DataFrame: read all, merge, group."""
    frame = pd.concat([pd.read_parquet(p) for p in sorted((path / "tokens").glob("*.parquet"))], ignore_index=True)
    for column in ("split", "role", "pair_id", "side"):
        frame[column] = frame[column].astype(str)
    key = ["pair_id", "side", "position"]
    wide = frame.pivot_table(
        index=["pair_id", "position"], columns=["step", "side"], values="token_id", aggfunc="first"
    )
    first = wide[0]["chosen"].ne(wide[0]["rejected"]).groupby(level="pair_id").idxmax().map(lambda at: at[1])
    frame["after"] = frame["position"] >= frame["pair_id"].map(first)
    frame["logp"] = frame["logp"].astype("float64")
    by_role = frame.groupby(["step", "side", "after"])["logp"].agg(["sum", "size"])
    steps = sorted(frame["step"].unique())
    start, end = (frame.loc[frame["step"] == s].set_index(key)["logp"] for s in (steps[0], steps[-1]))
    assert len(by_role) and start.index.equals(end.index)
    total: pd.Series = by_role["sum"]
    return float(total[steps[-1], "chosen", True] - total[steps[0], "chosen", True])


def measure(path: Path, way: str) -> dict[str, Any]:
    """Seconds, peak memory and the answer of one way, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", way, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"
        return {**dict.fromkeys(("seconds", "cpu", "gib", "answer"), float("nan")), "failed": reason}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def worker(way: str, path: Path) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    answer = {"streamed": streamed, "naive": naive}[way](path)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "cpu": cpu, "gib": peak, "answer": answer}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1e6,1e7", help="token rows, comma separated")
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--rows-per-checkpoint", type=float, help="fix the size of a checkpoint; rows set their number")
    parser.add_argument("--no-naive", action="store_true", help="leave the pandas way out")
    parser.add_argument("--folder", type=Path, help="where to write the synthetic runs (default: a temporary folder)")
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "RUN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], Path(args.worker[1]))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print(f"{'rows':>12} {'checkpoints':>11} {'way':>9} {'seconds':>8} {'CPU s':>7} {'peak GiB':>9}  answer")
        for text in args.rows.split(","):
            rows, checkpoints = int(float(text)), args.checkpoints
            if args.rows_per_checkpoint:
                checkpoints = max(2, round(rows / args.rows_per_checkpoint))
            path = Path(folder) / f"run_{rows}"
            written = write_run(path, rows, checkpoints)
            for way in ("streamed",) if args.no_naive else ("streamed", "naive"):
                result = measure(path, way)
                times = f"{result['seconds']:>8.2f} {result['cpu']:>7.2f} {result['gib']:>9.2f}"
                print(
                    f"{written:>12,} {checkpoints:>11} {way:>9} {times}  "
                    f"{result['answer']:.6f} {result.get('failed', '')}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
