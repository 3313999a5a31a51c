"""The real clients of MLflow, SwanLab and TensorBoard: what their stores hold, read back by other means than ours."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dpo_diag import load_run
from dpo_diag.importers import import_path
from dpo_diag.tracking import Session, mirror

ALERTED = """
import json, sys
from dpo_diag import load_run
from dpo_diag.tracking import Session, is_sent, mirror
run = load_run(sys.argv[1])
session = Session(["mlflow"], run.path, project="p", group="g", job_type="dpo", tags=["t"])
session.start({"loss": {"beta": 0.1}, "hub_token": "hf_secret", "gone": None}, "mine")
session.alert(3, "loss_spike", "loss 9")
session.send_rest(run)
session.close("finished")
assert session.failures == {}, session.failures
places = mirror(run, Session(["mlflow"], run.path, session.places, project="p"))
assert is_sent(run, "mlflow")
print(json.dumps([session.places["mlflow"], places["mlflow"]]))
"""


def test_mlflow_keeps_all_of_it_once(run_folder: Path, tmp_path: Path) -> None:
    """Its sqlite store, read as the tables that they are, after the run was sent twice."""
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="MLflow's sqlite store needs sqlalchemy")
    store = tmp_path / "mlflow.db"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{store}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", ALERTED, str(run_folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr
    first, again = json.loads(done.stdout.splitlines()[-1])
    assert first == again
    assert {k: first[k] for k in ("kind", "project", "name")} == {"kind": "mlflow", "project": "p", "name": "mine"}
    with closing(sqlite3.connect(store)) as database:
        rows = database.execute("SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ?", (first["id"],))
        metrics: dict[tuple[str, int], list[float]] = {}
        for key, step, value, is_nan in rows:
            metrics.setdefault((key, step), []).append(math.nan if is_nan else value)
        tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (first["id"],)))
        params = dict(database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (first["id"],)))
        runs = database.execute("SELECT run_uuid, name, status, artifact_uri FROM runs").fetchall()
    assert all(len(values) == 1 for values in metrics.values())
    assert (metrics["eval/loss", 0], metrics["eval/loss", 10]) == ([0.693], [0.5])
    assert math.isnan(metrics["train/loss", 10][0])
    assert metrics["best/eval/loss", 10] == [0.5]
    assert (tags["diag.harm"], tags["dpo_diag.group"], tags["dpo_diag.job_type"], tags["t"]) == (
        "harmful",
        "g",
        "dpo",
        "",
    )
    assert tags["alert.loss_spike.3"] == "warn: loss 9"
    assert (params["loss.beta"], params["hub_token"]) == ("0.1", "[redacted]")
    ((_, name, status, artifacts),) = runs
    assert (name, status) == ("mine", "FINISHED")
    folder = Path(artifacts.removeprefix("file://"))
    folder = folder if folder.is_absolute() else tmp_path / folder
    assert (folder / "report.html").read_text() == "<h1>The report</h1>"
    outputs = json.loads((folder / "outputs.json").read_text())
    assert outputs == {
        "columns": ["prompt_id", "prompt", "tags", "reference", "step 0", "step 10"],
        "data": [["q", "1+1?", "", "", "2", "3"]],
    }
    assert json.loads((folder / "pairs.json").read_text())["data"] == [["p1", 0.6, "1+1?", "2", "3"]]


def events(folder: Path) -> list[tuple[int, str, Any]]:
    """(step, tag, number or text) of every summary, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found: list[tuple[int, str, Any]] = []
    for file in sorted(folder.glob("*tfevents*")):
        for data in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(data)
            for value in event.summary.value:
                text = value.tensor.string_val[0].decode() if value.HasField("tensor") else None
                found.append((event.step, value.tag, value.simple_value if text is None else text))
    return found


def test_tensorboard_keeps_all_of_it_once(run_folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run = load_run(run_folder)
    session = Session(["tensorboard"], run_folder)
    session.start({"loss": {"beta": 0.1}, "hub_token": "hf_secret"}, "mine")
    session.alert(3, "loss_spike", "loss 9")
    session.send_rest(run)
    session.close("finished")
    assert session.failures == {}
    assert session.places["tensorboard"]["folder"] == "tensorboard"
    mirror(run, Session(["tensorboard"], run_folder, session.places))
    found = events(run_folder / "tensorboard")
    numbers = {(tag, step): value for step, tag, value in found if not isinstance(value, str)}
    assert len([v for v in found if v[1] == "eval/loss"]) == 2
    assert numbers["eval/loss", 0] == pytest.approx(0.693, abs=1e-6)  # float32
    assert numbers["held_out/score/accuracy", 10] == 0.25
    assert math.isnan(numbers["train/loss", 10])
    texts = {tag: (step, value) for step, tag, value in found if isinstance(value, str)}
    assert texts["diag/harm"] == (10, "harmful")
    assert texts["alerts/loss_spike"] == (3, "warn: loss 9")
    assert texts["outputs"][1].splitlines() == [
        "| prompt_id | prompt | tags | reference | step 0 | step 10 |", "| --- | --- | --- | --- | --- | --- |",
        "| q | 1+1? |  |  | 2 | 3 |",
    ]  # fmt: skip
    assert '"beta": 0.1' in texts["config"][1]
    assert "hf_secret" not in str(found)


SWANLAB = """
import json, sys
from dpo_diag import load_run
from dpo_diag.tracking import Session, is_sent
run = load_run(sys.argv[1])
session = Session(["swanlab"], run.path, project="p", group="g", job_type="dpo", tags=["t"])
session.start({"loss": {"beta": 0.1}, "hub_token": "hf_secret"}, "mine")
session.alert(3, "loss_spike", "loss 9")
session.send_rest(run)
session.close("finished")
assert session.failures == {}, session.failures
assert is_sent(run, "swanlab")
print(json.dumps(session.places["swanlab"]))
"""


def test_swanlab_keeps_it_offline(run_folder: Path, tmp_path: Path) -> None:
    """Its own log, which the import reads without SwanLab; nothing of its own on standard output."""
    pytest.importorskip("swanlab", reason="swanlab is not installed")
    command = [sys.executable, "-c", SWANLAB, str(run_folder)]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr
    where = json.loads(done.stdout)
    assert {k: where[k] for k in ("kind", "mode", "name")} == {"kind": "swanlab", "mode": "offline", "name": "mine"}
    place = run_folder / where["folder"]
    assert where["send"] == f"swanlab sync {place}"
    result = import_path(place, tmp_path / "back")
    assert (result["format"], result["beta"], result["skipped"]) == ("swanlab", 0.1, [])
    history = load_run(tmp_path / "back").history
    losses = history.loc[(history["split"] == "eval") & (history["name"] == "loss")]
    assert losses[["step", "value"]].to_numpy().tolist() == [[0, 0.693], [10, 0.5]]
    texts = [p.read_text() for p in (place / "media").rglob("*.txt")]
    assert "harmful" in texts
    assert "warn: loss 9" in texts
    assert any("| q | 1+1? |  |  | 2 | 3 |" in text for text in texts)
    files = b"".join(p.read_bytes() for p in place.rglob("*") if p.is_file())
    assert b"hf_secret" not in files
