"""The real clients: wandb offline read back, wandb online against a stand-in on the loopback, trackio's SQLite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from standin_server import ENTITY, StandIn

from dpo_diag import RunWriter, load_run
from dpo_diag.records.adding import added_to
from dpo_diag.tracking import SafeTracker, Session, make_tracker, mirror
from dpo_diag.tracking.mirror import run_config
from dpo_diag.tracking.sent import Sent

pytest.importorskip("wandb", reason="wandb is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def offline_records(folder: Path) -> list[dict[str, Any]]:
    """The records of one offline W&B run, read with wandb's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_mirrored_offline_reads_back_whole(run_folder: Path) -> None:
    session = Session(["wandb"], run_folder, project="p", group="g", tags=["t"], job_type="dpo")
    where = mirror(load_run(run_folder), session)["wandb"]
    assert session.failures == {}
    assert {k: where[k] for k in ("kind", "mode", "project")} == {"kind": "wandb", "mode": "offline", "project": "p"}
    assert where["folder"].startswith("wandb/offline-run-")
    assert where["name"].startswith("case-0-")
    records = offline_records(run_folder / where["folder"])
    started = next(r["run"] for r in records if r["type"] == "run")
    assert (started["project"], started["run_group"], started["tags"]) == ("p", "g", ["t"])
    assert started["job_type"] == "dpo"
    config = started["config"]["update"]
    assert config["trainer"] == {"learning_rate": 1e-05}
    assert (config["run"]["loss"]["types"], config["run"]["loss"]["beta"]) == (["sigmoid"], 0.1)
    assert "hf_secret" not in json.dumps(records)
    axes = {
        r["metric"].get("glob_name") or r["metric"]["name"]: r["metric"].get("step_metric")
        for r in records
        if r["type"] == "metric"
    }
    assert axes == {"train/global_step": None, "*": "train/global_step"}
    rows = [r["history"]["item"] for r in records if r["type"] == "history"]
    assert [(r["train/global_step"], r.get("eval/loss")) for r in rows[:2]] == [(0, 0.693), (10, 0.5)]
    assert rows[1]["train/loss"] == "NaN"
    assert rows[1]["held_out/score/accuracy"] == 0.25
    assert rows[1]["train/epoch"] == 0.5
    media = run_folder / where["folder"] / "files" / "media"
    tables = {p.name.split("_")[0]: json.loads(p.read_text()) for p in media.glob("table/*.table.json")}
    assert sorted(tables) == ["checks", "outputs", "pairs"]
    assert tables["outputs"]["columns"] == ["prompt_id", "prompt", "tags", "reference", "step 0", "step 10"]
    assert tables["outputs"]["data"] == [["q", "1+1?", "", "", "2", "3"]]
    assert tables["pairs"]["columns"] == ["pair_id", "share_of_rise", "prompt", "chosen", "rejected"]
    assert tables["checks"]["data"][0] == ["DVG001", "speaks", "warning", "Displacement", "75 % fell"]
    (page,) = media.glob("html/report*.html")
    assert page.read_text() == "<h1>The report</h1>"
    summary = {k: v for r in records if r["type"] == "summary" for k, v in r["summary"]["update"].items()}
    assert (summary["diag/harm"], summary["best/eval/loss"]) == ("harmful", 0.5)


def test_a_run_goes_on_under_its_id(run_folder: Path) -> None:
    """Mirrored again after it grew: the same id in a further folder, only the new row, one command that sends both."""
    first = mirror(load_run(run_folder), Session(["wandb"], run_folder))["wandb"]
    with added_to(run_folder) as (writer, _):
        writer.write("history", [{"step": 20, "split": "eval", "name": "loss", "value": 0.4, "weight": 4}], "later")
    again = mirror(load_run(run_folder), Session(["wandb"], run_folder, {"wandb": first}))["wandb"]
    assert (again["id"], again["name"]) == (first["id"], first["name"])
    assert again["folders"] == [first["folder"], again["folder"]]
    assert again["send"] == f"wandb sync {run_folder / first['folder']} {run_folder / again['folder']}"
    rows = [r["history"]["item"] for r in offline_records(run_folder / again["folder"]) if r["type"] == "history"]
    assert [r["eval/loss"] for r in rows if "eval/loss" in r] == [0.4]


def test_two_trainings_in_one_process_are_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep-7")
    found = []
    for job in range(2):
        tracker = make_tracker("wandb")
        where = tracker.start({"job": job}, f"job-{job}", tmp_path / str(job))
        tracker.log(1, {"train/loss": float(job)})
        tracker.finish("failed" if job else "finished")
        records = offline_records(tmp_path / str(job) / where["folder"])
        started = next(r["run"] for r in records if r["type"] == "run")
        rows = [r["history"]["item"] for r in records if r["type"] == "history"]
        status = next(r["exit"].get("exit_code", 0) for r in records if r["type"] == "exit")
        found.append(
            (started["run_id"], started["display_name"], started["run_group"], [r["train/loss"] for r in rows], status)
        )
    assert [f[1:] for f in found] == [("job-0", "sweep-7", [0], 0), ("job-1", "sweep-7", [1], 1)]
    assert found[0][0] != found[1][0]


MIRROR = """
import json, sys
from dpo_diag import load_run
from dpo_diag.tracking import Session, mirror
session = Session(["wandb"], load_run(sys.argv[1]).path, mode="online", entity="standin", project="p", group="g")
where = mirror(load_run(sys.argv[1]), session, name="mine")["wandb"]
print(json.dumps([where, session.failures]))
"""


def test_online_reaches_the_server(run_folder: Path) -> None:
    """In a process of its own: wandb keeps the server that it met first."""
    with StandIn() as server:
        command = [sys.executable, "-c", MIRROR, str(run_folder)]
        environment = {**os.environ, **server.environment()}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    where, failures = json.loads(done.stdout)
    assert failures == {}
    assert where["url"] == f"{server.url}/{ENTITY}/p/runs/{where['id']}"
    assert list(server.runs) == [where["id"]]
    received = server.runs[where["id"]]
    assert (received["display"], received["project"], received["group"], received["exit"]) == ("mine", "p", "g", 0)
    rows = [r for r in received["history"] if "eval/loss" in r]
    assert [(r["train/global_step"], r["eval/loss"]) for r in rows] == [(0, 0.693), (10, 0.5)]
    table = next(r["outputs"] for r in received["history"] if "outputs" in r)
    assert (table["_type"], table["nrows"], table["ncols"]) == ("table-file", 1, 6)
    sent = next(v for k, v in server.files.items() if k.startswith("files/media/table/outputs"))
    assert json.loads(sent)["data"] == [["q", "1+1?", "", "", "2", "3"]]
    assert b"The report" in next(v for k, v in server.files.items() if k.startswith("files/media/html/report"))
    assert received["summary"]["diag/harm"] == "harmful"
    assert "CommitArtifact" in server.operations
    everything = json.dumps(received) + "".join(v.decode(errors="replace") for v in server.files.values())
    assert "hf_secret" not in everything


def test_trackio_keeps_scalars_and_the_table(run_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    code = f"""
import sys
from dpo_diag import load_run
from dpo_diag.tracking import Session, mirror
run = load_run({str(run_folder)!r})
for earlier in ({{}}, {{}}):
    session = Session(["trackio"], run.path, earlier, project="p")
    places = mirror(run, session)
    assert session.failures == {{}}, session.failures
session = Session(["trackio"], run.path, places, project="p")
session.start({{}}, places["trackio"]["name"])
session.alert(3, "loss_spike", "loss 9")
session.close("finished")
from trackio.sqlite_storage import SQLiteStorage
import json
names = SQLiteStorage.get_runs("p")
stored = [[n, SQLiteStorage.get_logs("p", n), SQLiteStorage.get_run_config("p", n)] for n in names]
print(json.dumps(stored, default=str))
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "GRADIO_ANALYTICS_ENABLED": "False"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)  # nothing of trackio's own on standard output
    assert len({name for name, _, _ in runs}) == 2
    for _, logs, config in runs:
        scalars = [r for r in logs if "train/global_step" in r]
        assert [(r["train/global_step"], r["eval/loss"]) for r in scalars] == [(0, 0.693), (10, 0.5)]
        assert config["trainer"] == {"learning_rate": 1e-05}
        assert "hf_secret" not in json.dumps(config)
        assert sum("outputs" in r for r in logs) == 1


def test_the_config_of_a_run_without_hydra_is_run_json(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r", kind="imported").update(source={"format": "trl"}, tracking={"kind": "wandb"})
    config = run_config(load_run(tmp_path / "r"))
    assert list(config) == ["run"]
    assert config["run"]["source"] == {"format": "trl"}
    assert not {"packages", "tracking"} & set(config["run"])


def test_an_empty_run_can_be_mirrored(tmp_path: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def start(self, config: Any, run_name: str, folder: Any) -> dict[str, Any]:
            self.calls.append("start")
            return {}

        def log(self, step: int, values: Any) -> None:
            self.calls.append("log")

        def log_outputs(self, outputs: pd.DataFrame) -> None:
            self.calls.append("log_outputs")

        def finish(self, status: str = "finished") -> None:
            self.calls.append(status)

    RunWriter(tmp_path / "r").finish("interrupted")
    tracker = Counting()
    session = Session([], tmp_path / "r")
    session.trackers, session.sent = {"counting": SafeTracker(tracker)}, {"counting": Sent()}
    mirror(load_run(tmp_path / "r"), session)
    assert tracker.calls == ["start", "interrupted"]
