"""Trainings are killed at 84 places and resumed; each must be the training that nobody killed (killed_trainings.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KINDS = ("dpo", "sft", "lora", "accumulation")
EVEN, WRITES, RESUMES, EVALUATIONS = "6", "8", "3", "4"
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="a child's CPU time is read from Linux's /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_goes_on_as_if_nobody_had_killed_it(
    kind: str, tmp_path: Path, fault: Callable[..., None]
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killed_trainings", str(tmp_path / "kills"), kind, EVEN, WRITES, RESUMES,
         EVALUATIONS],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=3500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])  # libraries print above it
    assert found["wrong"] == []
    for name, tried, lost in found["rows"]:
        fault(name, tried=tried, lost=lost)
