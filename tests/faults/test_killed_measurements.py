"""dpo-score and dpo-generate as a user calls them, killed with part of their work written, and continued by the line
that the next command prints: nothing is there twice, nothing is missing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_diag import load_run
from tests.faults.killed_commands import models, tables
from tests.training.tiny import make_pairs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]
GENERATE = "dpo-generate prompts.path=prompts.jsonl prompts.max_new_tokens=8"
SCORE = "dpo-score data.path=pairs.jsonl"
WORKS = {
    "a generation by its command": (GENERATE, "outputs/*.parquet"),  # a file for each 64 prompts of a checkpoint
    "a scoring by its command": (SCORE, "pairs/*.parquet"),
    "a shared scoring by its command": (f"{SCORE} launcher=rank shard_size=20", ".work/*/*.zip"),
}


def shell(line: str, folder: Path) -> subprocess.Popen[str]:
    """A line as a user gives it to a shell, in a process group of its own."""
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen(
        line, shell=True, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def ended(line: str, folder: Path) -> str:
    """What it printed on standard output; it must succeed."""
    out, err = (started := shell(line, folder)).communicate(timeout=300)
    assert started.returncode == 0, f"{line}\n{err[-3000:]}"
    return out


def killed(line: str, folder: Path, run: Path, pattern: str) -> None:
    """Start it, and kill it as soon as a first file of its work is there."""
    started = shell(f"exec {line}", folder)
    while next(run.glob(pattern), None) is None:
        assert started.poll() is None, started.communicate()[1][-3000:]
        time.sleep(0.001)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    assert started.returncode == -signal.SIGKILL


@pytest.mark.parametrize("work", WORKS)
def test_a_killed_measurement_goes_on_by_the_line_that_explain_prints(
    work: str, tmp_path: Path, fault: Callable[..., None]
) -> None:
    models(tmp_path)
    rows = {
        "pairs.jsonl": make_pairs(40),
        "prompts.jsonl": [{"id": f"q{i}", "prompt": f"{i} cat:"} for i in range(150)],
    }
    for name, written in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    command, pattern = WORKS[work]
    line = f"{command} 'checkpoints=checkpoint-*' loader.device=cpu out="
    ended(f"{line}whole", tmp_path)
    run = tmp_path / "half"
    killed(f"{line}half", tmp_path, run, pattern)
    before = {path: path.stat().st_mtime_ns for path in run.glob(pattern)}
    next_line = json.loads(ended("dpo-diag explain half --json", tmp_path))["next"][0]
    assert shlex.split(next_line) == shlex.split(f"{line}half")
    lost = []
    out = ended(next_line, tmp_path)
    assert out.splitlines()[-1] == "half"
    if any(path.stat().st_mtime_ns != at for path, at in before.items() if path.exists() and path.suffix == ".parquet"):
        lost.append("what was there was written again")
    if (found := tables(run)) != (expected := tables(tmp_path / "whole")):
        lost.append(f"{[t for t in expected if found[t] != expected[t]]} differ")
    if load_run(run).info.status != "finished":
        lost.append("it is not finished")
    if left := [str(p) for p in tmp_path.rglob("*") if p.suffix == ".zip" or p.name.endswith(".tmp")]:
        lost.append(f"{left} are left")
    assert not (tmp_path / "runs").exists()  # `out` is the run: no other folder is made
    print(*lost, sep="\n")
    fault(f"SIGKILL in {work}", tried=1, lost=len(lost))
