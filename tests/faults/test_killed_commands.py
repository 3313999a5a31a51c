"""Imports, scorings, generations, reviews and compactions are killed and begun again (killed_commands.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WORKS = ("an import", "a scoring", "a generation", "a review", "a compaction")
KILLS = "15"
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each try is a fork")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("work", WORKS)
def test_a_killed_work_is_begun_again_and_loses_nothing(work: str, tmp_path: Path, fault: Callable[..., None]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killed_commands", str(tmp_path / "kills"), work, KILLS],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(*found["wrong"], sep="\n")  # pytest shows it where a fault's count fails the test
    for name, tried, lost in found["rows"]:
        fault(name, tried=tried, lost=lost)
    assert found["wrong"] == []
