"""A client's work at the end of the process is bounded; the process keeps its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

CLIENT = """
import atexit, logging, sys, time
logging.basicConfig(format="%(message)s")
from dpo_diag.tracking import safe
from dpo_diag.tracking.base import TrackerOptions
from dpo_diag.tracking.safe import SafeTracker

def hangs():
    while True:
        try:
            time.sleep(60)
        except Exception:  # no error of the service ends it
            pass

def taken_back():
    print("was not taken back")

class Client:
    def start(self, *given):
        for hook in (hangs, taken_back, lambda: print("quick")):
            atexit.register(hook)
        atexit.unregister(taken_back)
        return {"send": "client sync"}

safe.GRACE = 0.2
tracker = SafeTracker(Client(), TrackerOptions(finish_timeout=0))
tracker.start({}, "name", ".")
atexit.register(lambda: print("own", sys.argv[1:]))
sys.exit(3)
"""
WANDB = """
import logging, sys
import psutil, wandb
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
from dpo_diag import load_run
from dpo_diag.tracking import Session, safe
safe.CALL_LIMIT, safe.GRACE = 1.5, 1.0

def stop():
    service = psutil.Process(wandb.setup()._connection._proc._process.pid)
    service.suspend()
    print(service.pid, flush=True)

session = Session(["wandb"], load_run(sys.argv[1]).path, project="p", finish_timeout=1.0)
session.start({}, "mine")
if sys.argv[2] == "end":
    stop()
session.close("finished")
if sys.argv[2] == "exit":
    stop()
sys.exit(3)
"""


def ended(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})


def test_a_hook_that_hangs_is_ended_and_the_others_run() -> None:
    """In the order of `atexit`, the last one first: the process' own, the quick one, the one that never ends, which is
    told once; what its client took back does not run."""
    done = ended(CLIENT)
    assert (done.returncode, done.stdout.splitlines()) == (3, ["own []", "quick"])
    (line,) = done.stderr.splitlines()
    assert line == (
        "tracking failed, the run goes on and its records are complete: its client did not end within 0.2 s of the "
        "process' end; later: client sync"
    )


@pytest.mark.slow
@pytest.mark.parametrize("when", ["end", "exit"])
def test_wandb_s_service_that_is_stopped_does_not_hold_the_exit(run_folder: Path, when: str) -> None:
    """SIGSTOP before `finish`, and behind it: wandb waits at its exit, without end, for a process that does nothing. It
    is ended, since it holds the pipes that this test reads. Told once: what failed first."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    done = ended(WANDB, str(run_folder), when)
    assert done.returncode == 3, done.stderr
    (line,) = (one for one in done.stderr.splitlines() if one.startswith("WARNING"))
    what = {
        "end": "could not finish: no answer within 2 s",
        "exit": "its client did not end within 2 s of the process' end",
    }
    said = f"WARNING tracking failed, the run goes on and its records are complete: {what[when]}; later: wandb sync "
    assert line.startswith(said)
    assert not psutil.pid_exists(int(done.stdout))
