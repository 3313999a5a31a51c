"""Files written by the real trackers: TensorBoard's writer, wandb offline, trackio; and a run of a W&B server."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.importers.formats.tensorboard import records
from dpo_diag.records.text_files import Skipped
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value

_WANDB = """
import wandb
run = wandb.init(project="p", dir={dir!r}, mode="offline", config={{"beta": 0.25, "loss_type": ["sigmoid"],
                 "model_name_or_path": "tiny", "logging_steps": 10}})
for i in range(1, 4):
    run.log({{"train/loss": 0.69 - 0.01 * i, "train/rewards/chosen": 0.1 * i, "train/global_step": 10 * i,
             "train/epoch": i / 4}})
    run.log({{"eval/loss": float("nan"), "eval/rewards/chosen": 0.1 * i, "train/global_step": 10 * i,
             "blob": "x" * 20000}})
run.finish()
"""
_TRACKIO = """
import trackio
for name in {names!r}:
    trackio.init(project="p", name=name, config={{"beta": 0.25}}, auto_log_gpu=False, auto_log_cpu=False)
    for i in range(1, 4):
        trackio.log({{"train/loss": 0.6 + i, "train/rewards/chosen": float("nan"), "train/global_step": 10 * i}})
    trackio.finish()
"""


def run_script(script: str, folder: Path, **environment: str) -> None:
    """In a process of its own: trackers keep threads and warn at interpreter exit."""
    base = {
        **os.environ,
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DIR": str(folder),
        "HOME": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**base, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def event_file(folder: Path, points: list[tuple[str, float, int]], text: dict[str, Any] | None = None) -> Path:
    """Events by TensorBoard's own writer."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder))
    if text is not None:
        tensor = TensorProto(dtype=7, string_val=[json.dumps(text).encode()])
        writer.add_event(Event(step=0, summary=Summary(value=[Summary.Value(tag="args/text_summary", tensor=tensor)])))
    for tag, number, step in points:
        writer.add_event(
            Event(step=step, wall_time=1.0, summary=Summary(value=[Summary.Value(tag=tag, simple_value=number)]))
        )
    writer.close()
    return next(folder.glob("*tfevents*"))


OPENRLHF = [
    ("train/loss", 0.6875, 1), ("train/acc", 0.5, 1), ("train/chosen_reward", 0.125, 1),
    ("train/reject_reward", -0.25, 1), ("train/acc_mean", 0.25, 1), ("train/loss_mean", 0.5, 1),
    ("train/loss", math.nan, 2), ("eval/eval_loss", 0.75, 2), ("eval/acc_mean", 0.625, 2),
]  # fmt: skip


def test_openrlhf_tensorboard(tmp_path: Path, imported: Importing) -> None:
    """Running means are no accuracies; `reject_reward` is rewards/rejected; margins follow exactly."""
    event_file(tmp_path / "tb", OPENRLHF)
    result, run = imported(tmp_path / "tb")
    assert (result["format"], result["trainer"], result["skipped"]) == ("tensorboard", "openrlhf", [])
    assert (value(run, "loss", 1), value(run, "rewards/accuracies", 1)) == (0.6875, 0.5)
    assert (value(run, "rewards/rejected", 1), value(run, "rewards/margins", 1)) == (-0.25, 0.375)
    assert math.isnan(value(run, "loss", 2))
    assert (value(run, "loss", 2, "eval"), value(run, "rewards/accuracies", 2, "eval")) == (0.75, 0.625)
    assert value(run, "accuracies_running_mean", 1) == 0.25


def test_the_callbacks_arguments_give_loss_and_beta(tmp_path: Path, imported: Importing) -> None:
    text = {"beta": 0.05, "loss_type": ["sigmoid", "sft"], "label_smoothing": 0.0, "logging_steps": 5, "max_steps": -1}
    file = event_file(tmp_path / "tb", [("train/loss", 0.5, 5)], text)
    _, run = imported(file)
    assert (run.meta["loss"]["types"], run.meta["loss"]["beta"]) == (["sigmoid", "sft"], 0.05)
    assert "args/text_summary: beta" in run.meta["source"]["said"]["beta"]


def test_steps_that_run_backwards_are_noted(tmp_path: Path, imported: Importing) -> None:
    """A training that ended at step 30 and was resumed at 20: the later file's values stay, and 30 -> 20 is noted."""
    first = event_file(tmp_path / "first", [("train/loss", 0.69 - step / 100, step) for step in (10, 20, 30)])
    second = event_file(tmp_path / "second", [("train/loss", 0.5 - step / 1000, step) for step in (20, 30, 40)])
    folder = tmp_path / "both"
    folder.mkdir()
    first.rename(folder / "events.out.tfevents.1.a")
    second.rename(folder / "events.out.tfevents.2.a")
    _, run = imported(folder)
    assert run.meta["source"]["backtracks"] == [{"split": "train", "from": 30, "to": 20}]
    assert [value(run, "loss", step) for step in (10, 20, 30, 40)] == pytest.approx([0.59, 0.48, 0.47, 0.46], abs=1e-6)


@pytest.mark.parametrize("cut", [1, 5, 13, 30])
def test_a_cut_event_file_gives_what_came_before(tmp_path: Path, imported: Importing, cut: int) -> None:
    file = event_file(tmp_path / "tb", [("train/loss", 0.5, 1), ("train/loss", 0.25, 2)])
    file.write_bytes(file.read_bytes()[:-cut])
    result, run = imported(file)
    assert value(run, "loss", 1) == 0.5
    assert result["skipped"][0]["why"] == "the file ends inside a record"


def test_a_damaged_record_is_passed_over(tmp_path: Path, imported: Importing) -> None:
    file = event_file(tmp_path / "tb", [("train/loss", 0.5, 1), ("train/loss", 0.25, 2)])
    data = bytearray(file.read_bytes())
    data[-20] ^= 0xFF  # inside the last record's content
    file.write_bytes(bytes(data))
    result, run = imported(file)
    assert steps(run, "loss") == [1]
    assert result["skipped"] == [{"line": 3, "why": "a record is damaged: wrong checksum"}]


def test_a_damaged_record_costs_only_itself(tmp_path: Path, imported: Importing) -> None:
    """Tensorboard's own loaders would end at step 2 without a word."""
    file = event_file(tmp_path / "tb", [("train/loss", 1 / step, step) for step in (1, 2, 3, 4)])
    data = file.read_bytes()
    size = len(data) - len(event_file(tmp_path / "less", [("train/loss", 1.0, 1)]).read_bytes())
    start = len(data) - size  # of the records of steps 2, 3 and 4, which have one length
    broken = bytearray(data)
    broken[start + 20] ^= 0xFF
    file.write_bytes(bytes(broken))
    result, run = imported(file)
    assert steps(run, "loss") == [1, 3, 4]
    assert result["skipped"] == [{"line": 3, "why": "a record is damaged: wrong checksum"}]


@pytest.mark.parametrize(("name", "content"), [("tensorboard", b"\0"), ("wandb", b":W&B\xe1\xbe\0")])
def test_a_missing_package_is_one_line_with_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imported: Importing, name: str, content: bytes
) -> None:
    (tmp_path / "events.out.tfevents.1.x").write_bytes(content)
    monkeypatch.setattr("dpo_diag.extras.is_installed", lambda package: False)
    with pytest.raises(DiagError, match=rf"needs {name}, .*hint: pip install .*\[{name}\]"):
        imported(tmp_path / "events.out.tfevents.1.x", name)


def test_a_length_that_lies_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1.x"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"\0" * 100)
    skipped = Skipped()
    assert list(records(path, skipped)) == []
    assert skipped.count == 1


def test_wandb_offline_run(tmp_path: Path, imported: Importing) -> None:
    run_script(_WANDB.format(dir=str(tmp_path)), tmp_path)
    result, run = imported(tmp_path / "wandb")
    assert (result["format"], result["rows"], result["read"], result["skipped"]) == ("wandb", 6, 6, [])
    assert steps(run, "loss") == [10, 20, 30]
    assert value(run, "loss", 20) == pytest.approx(0.67, abs=1e-15)
    assert math.isnan(value(run, "loss", 30, "eval"))
    assert value(run, "rewards/chosen", 30, "eval") == pytest.approx(0.3)
    assert (run.meta["loss"]["types"], run.meta["loss"]["beta"]) == (["sigmoid"], 0.25)
    assert run.meta["model"]["name"] == "tiny"
    file = next((tmp_path / "wandb").glob("offline*/*.wandb"))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    result, run = imported(file)
    assert steps(run, "loss")[0] == 10
    assert (
        result["skipped"][-1]["why"]
        == "reached the end of an incomplete .wandb file (the run may still be active or was interrupted)"
    )


def test_trackio_project(tmp_path: Path, imported: Importing) -> None:
    run_script(_TRACKIO.format(names=["one", "two"]), tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    file = tmp_path / "trackio" / "p.db"
    with pytest.raises(DiagError, match="one, two") as error:
        imported(file)
    assert error.value.usage
    result, run = imported(file, run="two")
    assert (result["format"], result["read"]) == ("trackio", 3)
    assert steps(run, "loss") == [10, 20, 30]
    assert value(run, "loss", 20) == 2.6
    assert math.isnan(value(run, "rewards/chosen", 10))
    assert result["beta"] == 0.25
    assert not (tmp_path / "trackio" / "p.db-journal").exists()


class _Server:
    """Stands for wandb.Api: the calls that the importer makes, and nothing else."""

    def run(self, path: str) -> _Server:
        assert path == "me/dpo/abc123"
        self.name = "sunny-1"
        self.config = {"beta": {"value": 0.1}, "loss_type": "sigmoid"}
        return self

    def scan_history(self) -> list[dict[str, Any]]:
        return [
            {
                "_step": 0,
                "train/global_step": 5,
                "train/loss": 0.7,
                "eval/loss": None,
                "table": {"_type": "table-file"},
            },
            {"_step": 1, "train/global_step": 5, "eval/loss": "NaN", "_timestamp": 1.0},
        ]


@pytest.mark.parametrize("path", ["me/dpo/abc123", "wandb:me/dpo/abc123", "https://wandb.ai/me/dpo/runs/abc123?nw=x"])
def test_a_run_of_the_server_by_its_path(monkeypatch: pytest.MonkeyPatch, imported: Importing, path: str) -> None:
    import wandb

    monkeypatch.setattr(wandb, "Api", _Server)
    result, run = imported(path)
    assert (result["format"], result["read"]) == ("wandb", 2)
    assert value(run, "loss", 5) == 0.7
    assert math.isnan(value(run, "loss", 5, "eval"))
    assert run.meta["loss"]["beta"] == 0.1


def test_a_server_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, imported: Importing) -> None:
    import wandb

    def refuse() -> None:
        raise ValueError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(wandb, "Api", refuse)
    with pytest.raises(DiagError, match="did not give the run") as error:
        imported("me/dpo/abc123")
    assert "\n" not in str(error.value)


def mlflow_database(path: Path, runs: dict[str, str | None]) -> Path:
    """MLflow's tables with runs of three losses each, the second one NaN, and one run that was deleted."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE runs (run_uuid TEXT, name TEXT, lifecycle_stage TEXT, start_time INTEGER)")
        db.execute("CREATE TABLE metrics (key TEXT, value REAL, timestamp INT, run_uuid TEXT, step INT, is_nan BOOL)")
        db.execute("CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT)")
        db.execute("CREATE TABLE tags (key TEXT, value TEXT, run_uuid TEXT)")
        for start, (run, name) in enumerate({**runs, "gone": "gone"}.items()):
            stage = "deleted" if run == "gone" else "active"
            db.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (run, name, stage, start))
            for step, loss in ((10, 0.69), (20, 0.0), (30, 0.5 + start)):
                db.execute("INSERT INTO metrics VALUES ('loss', ?, ?, ?, ?, ?)", (loss, step, run, step, step == 20))
                rewards = (-step / 100, step, run, step)
                db.execute("INSERT INTO metrics VALUES ('rewards/chosen', ?, ?, ?, ?, 0)", rewards)
            db.execute("INSERT INTO params VALUES ('beta', '0.2', ?)", (run,))
    return path


def test_mlflow_s_database(tmp_path: Path, imported: Importing) -> None:
    """A number that is NaN was NaN, the largest float was infinite; a deleted run is none; the file stays alone."""
    (tmp_path / "db").mkdir()
    path = mlflow_database(tmp_path / "db" / "mlflow.db", {"a1": "mine"})
    with closing(sqlite3.connect(path)) as db, db:
        largest = (-sys.float_info.max,)
        db.execute("UPDATE metrics SET value = ? WHERE key = 'rewards/chosen' AND step = 20", largest)
    result, run = imported(path)
    assert (result["format"], result["read"], run.info.beta) == ("mlflow_db", 3, 0.2)
    assert (value(run, "loss", 10), value(run, "loss", 30), value(run, "rewards/chosen", 30)) == (0.69, 0.5, -0.3)
    assert math.isnan(value(run, "loss", 20))
    assert value(run, "rewards/chosen", 20) == -math.inf
    assert [p.name for p in path.parent.iterdir()] == ["mlflow.db"]


def test_runs_of_mlflow_s_database_are_told_apart(tmp_path: Path, imported: Importing) -> None:
    """Two runs of one name: the second goes by its id; an id stands for the name."""
    path = mlflow_database(tmp_path / "mlruns.db", {"a1": "mine", "b2": "mine", "c3": None})
    assert value(imported(path, run="mine")[1], "loss", 30) == 0.5
    assert [value(imported(path, run=run_id)[1], "loss", 30) for run_id in ("a1", "b2", "c3")] == [0.5, 1.5, 2.5]
    with pytest.raises(DiagError, match="mine"):
        imported(path, run="no such")


def swanlab_log(points: list[tuple[str, int, float]]) -> bytes:
    """SwanLab's log by its definition: LevelDB frames of protobuf messages, fields in the order of their numbers."""

    def field(number: int, kind: int, data: bytes) -> bytes:
        size = bytes([len(data)]) if kind == 2 else b""
        return bytes([number << 3 | kind]) + size + data

    messages = [field(10, 2, field(1, 2, b"p") + field(4, 2, b"mine") + field(10, 2, b"abc"))]
    for key, step, number in points:
        scalar = field(1, 2, key.encode()) + (field(2, 0, bytes([step])) if step else b"")
        value = field(1, 1, struct.pack("<d", number)) if number else b""
        messages.append(field(1, 0, b"\x01") + field(13, 2, scalar + field(5, 2, value)))
    data = struct.pack("<4sHB", b":SWL", 0xE1D6, 2)
    for message in messages:
        data += struct.pack("<IHB", zlib.crc32(message, zlib.crc32(b"\x01")), len(message), 1) + message
    return data


SWANLAB = [
    ("train/loss", 10, 0.5),
    ("train/loss", 20, math.nan),
    ("eval/rewards/chosen", 0, 0.0),
    ("eval/loss", 20, 0.4),
]


def test_swanlabs_log_is_read_without_swanlab(tmp_path: Path, imported: Importing) -> None:
    """A step and a value of 0 are left out by protobuf, and are 0."""
    folder = tmp_path / "swanlog" / "run-20261129_215059-abc"
    (folder / "files").mkdir(parents=True)
    (folder / "run-abc.swanlab").write_bytes(swanlab_log(SWANLAB))
    (folder / "files" / "config.yaml").write_text("loss:\n  desc: ''\n  sort: 0\n  value:\n    beta: 0.25\n")
    result, run = imported(tmp_path / "swanlog")
    assert (result["format"], result["skipped"], result["beta"]) == ("swanlab", [], 0.25)
    assert (value(run, "loss", 10), value(run, "loss", 20, "eval")) == (0.5, 0.4)
    assert math.isnan(value(run, "loss", 20))
    assert value(run, "rewards/chosen", 0, "eval") == 0.0
    assert run.meta["source"]["details"]["run_name"] == "mine"


def test_a_damaged_swanlab_log_gives_what_is_whole(tmp_path: Path, imported: Importing) -> None:
    data = swanlab_log(SWANLAB)
    (tmp_path / "run-abc.swanlab").write_bytes(data[:-5])
    result, run = imported(tmp_path / "run-abc.swanlab")
    assert [row["why"] for row in result["skipped"]] == ["the file ends inside a record"]
    assert value(run, "loss", 10) == 0.5
