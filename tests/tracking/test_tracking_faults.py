"""The real wandb client against a server that hangs, fails, refuses the key or is not there: bounded, told once, whole
later. The limits are a second or two, so that no test waits for those of a user.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from standin_server import StandIn

pytest.importorskip("wandb", reason="wandb is not installed")

PATIENCE = 240
"""Seconds for a process that ends by itself: on a busy machine its imports alone take a minute."""
MIRROR = """
import json, logging, sys
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
from dpo_diag import load_run
from dpo_diag.tracking import Session, mirror
run = load_run(sys.argv[1])
session = Session(["wandb"], run.path, mode="online", entity="standin", project="p", start_timeout=float(sys.argv[2]),
                  finish_timeout=1.5)
session.start({}, "mine")
sys.modules["dpo_diag.tracking.safe"].CALL_LIMIT = 3.0 if sys.argv[3] == "late" else 10.0
if sys.argv[3] == "late":
    print("started", flush=True)
    sys.stdin.readline()
session.send_rest(run)
session.close("finished")
print(json.dumps([session.places["wandb"], session.failures["wandb"]]))
"""


def start(folder: Path, limit: float, way: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A mirror in a process of its own: wandb keeps the server that it met first."""
    command = [sys.executable, "-c", MIRROR, str(folder), str(limit), way]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment}
    )  # fmt: skip


def end_of(process: subprocess.Popen[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """(where, failures, warnings); the process ended by itself."""
    out, err = process.communicate("\n", timeout=PATIENCE)
    assert process.returncode == 0, err
    where, failures = json.loads(out.splitlines()[-1])
    return where, failures, [line for line in err.splitlines() if line.startswith("WARNING tracking")]


def synced(server: StandIn, send: str) -> list[dict[str, Any]]:
    """What the server received of the run after the command that was named."""
    command = [sys.executable, "-m", *shlex.split(send)]
    done = subprocess.run(
        command, env={**os.environ, **server.environment()}, capture_output=True, text=True, timeout=PATIENCE
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [r for run in server.runs.values() for r in run["history"]]


@pytest.mark.parametrize(
    "fault", ["hang", *(pytest.param(fault, marks=pytest.mark.slow) for fault in (500, 401, "refused"))]
)
def test_a_server_that_fails_at_the_start_costs_one_warning_and_the_run_is_written_offline(
    fault: str | int, run_folder: Path
) -> None:
    with StandIn(None if fault == "refused" else fault) as server:
        environment = server.environment()
        if fault == "refused":
            environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"  # discard: nothing listens
        where, failures, warnings = end_of(start(run_folder, 2.0, "start", environment))
        assert (where["mode"], where["id"]) == ("offline", where["folder"].rpartition("-")[2])
        assert where["failed"].startswith("W&B is not reached (")
        assert where["send"] == f"wandb sync {run_folder / where['folder']}"
        assert len(failures) == len(warnings) == 1
        assert warnings[0].endswith(f"later: {where['send']}")
        assert server.runs == {}
    if fault == "hang":
        with StandIn() as server:  # it is back: a later sync completes the run
            rows = synced(server, where["send"])
        assert [r["eval/loss"] for r in rows if "eval/loss" in r] == [0.693, 0.5]
        assert list(server.runs) == [where["id"]]


@pytest.mark.slow
def test_a_server_that_hangs_later_does_not_hold_the_end(run_folder: Path) -> None:
    """It stops answering between the start and the first row. Scalars are only written to disk, but wandb asks the
    server before it takes a table: that call is left behind, and nothing waits for the end. All is in the folder, for
    wandb's own exit waits until its service has written what it was given."""
    with StandIn() as server:
        process = start(run_folder, 30.0, "late", server.environment())
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        server.fault = "hang"
        where, failures, warnings = end_of(process)
        assert where["mode"] == "online"
        place = run_folder / where["folder"]
        message = f"could not log the outputs: no answer within 3 s; later: wandb sync --no-skip-online {place}"
        assert failures == [message]
        assert len(warnings) == 1
    with StandIn() as server:
        rows = synced(server, where["send"])
    assert [r["eval/loss"] for r in rows if "eval/loss" in r] == [0.693, 0.5]


@pytest.mark.slow
def test_an_end_that_the_server_does_not_take_is_given_up(run_folder: Path) -> None:
    """Nothing but scalars, so that the end is what waits: its 1.5 s, and then the command that sends the rest."""
    shutil.rmtree(run_folder / "outputs")
    for name in ("findings.json", "report.html"):
        (run_folder / name).unlink()
    with StandIn() as server:
        process = start(run_folder, 30.0, "late", server.environment())
        assert process.stdout is not None
        process.stdout.readline()
        server.fault = "hang"
        where, failures, warnings = end_of(process)
    place = run_folder / where["folder"]
    reason = "could not finish: TimeoutError: W&B did not take everything within 1.5 s"
    assert failures == [f"{reason}; later: wandb sync --no-skip-online {place}"]
    assert len(warnings) == 1


def test_without_a_key_nobody_is_asked_for_one(run_folder: Path, tmp_path: Path) -> None:
    with StandIn() as server:
        environment = {**server.environment(), "HOME": str(tmp_path), "WANDB_API_KEY": ""}
        where, _, warnings = end_of(start(run_folder, 2.0, "start", environment))
    assert where["mode"] == "offline"
    assert "DiagError: no key; hint: wandb login, or WANDB_API_KEY" in warnings[0]
