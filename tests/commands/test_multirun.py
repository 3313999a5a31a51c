"""A multirun's end: every job with its status, its reason in its own log, the table, the next command, the status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dpo_diag import RunWriter
from dpo_diag.commands import sweep_resume
from dpo_diag.commands.diag import main
from dpo_diag.commands.hydra_app import run_app
from dpo_diag.commands.resume_trust import is_own_sweep
from dpo_diag.errors import DiagError


def record(cfg: DictConfig) -> str:
    """A job without a model: seed 1 meets a bug, seed 2 a mistake of the user's, seed 3 the user's Ctrl-C."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.seed == 1:
        raise RuntimeError("no room")
    if cfg.seed == 2:
        raise DiagError("too many bad rows", got=7)
    if cfg.seed == 3:
        raise KeyboardInterrupt
    writer = RunWriter(folder)
    writer.write("history", [{"step": 4, "split": "eval", "name": "loss", "value": 0.5, "weight": 2}])
    writer.finish()
    return str(folder)


def multirun(tmp_path: Path, seeds: str) -> tuple[int, Path]:
    status = run_app("dpo-train", "config", record, ["-m", f"output_root={tmp_path}", f"seed={seeds}"])
    return status, next((tmp_path / "run").iterdir())


def test_a_failed_job_does_not_hide_and_the_others_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, folder = multirun(tmp_path, "0,1,2,4")
    assert status == 1
    told = capfd.readouterr().err
    table = told[told.index("the same in all:") :]
    assert "4 jobs: 2 completed, 2 failed" in table and "seed=1; RuntimeError: no room" in table
    assert f"log: {folder / '1' / 'dpo-train.log'}" in table and "too many bad rows; got 7" in table
    assert told.splitlines()[-1] == f"next: dpo-diag sweep {folder} --resume"
    bug, mistake = ((folder / n / "dpo-train.log").read_text() for n in "12")
    assert "Traceback" in bug and "RuntimeError: no room" in bug
    assert "failed: too many bad rows" in mistake and "Traceback" not in mistake
    assert [json.loads((folder / n / ".hydra" / "job.json").read_text())["status"] for n in "0124"[:3]] == [
        "completed", "failed", "failed",
    ]  # fmt: skip
    assert not (folder / "4").exists() and (folder / "3" / "run.json").is_file()  # jobs are numbered, not seeds


def test_a_whole_multirun_ends_with_its_table_and_status_0(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, folder = multirun(tmp_path, "0,4")
    assert status == 0
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1] == f"next: dpo-diag sweep {folder}" and any(line.startswith("over seeds") for line in lines)


def test_ctrl_c_tells_what_is_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, folder = multirun(tmp_path, "0,3,5")
    assert status == 130
    told = capfd.readouterr().err
    assert "3 jobs: 1 completed, 1 interrupted, 1 missing" in told and "--resume" in told.splitlines()[-1]
    assert main(["sweep", str(folder), "--json"]) == 0
    runs = json.loads(capfd.readouterr().out)["runs"]
    assert [run["status"] for run in runs] == ["completed", "interrupted", "missing"]


def test_what_cannot_be_composed_leaves_no_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_app("dpo-train", "config", record, ["-m", f"output_root={tmp_path / 'runs'}", "loss.beta=0.1,much"]) == 2
    assert not (tmp_path / "runs").exists()
    assert "much" in capfd.readouterr().err.splitlines()[-1]


def test_resume_runs_only_what_did_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seeds 0, 3 (stopped) and 5 (never begun) the last two are called again, in their own folders; what the stopped
    one left is kept aside. A job with a checkpoint goes on from it."""
    _, folder = multirun(tmp_path, "0,3,5")
    assert is_own_sweep(folder)
    called = []

    def call(plan: object, arguments: list[str]) -> int:
        called.append(arguments)
        return 0

    monkeypatch.setattr(sweep_resume, "_call", call)
    assert main(["sweep", str(folder), "--resume"]) == 1  # nothing was run here, so they are still not complete
    assert [[a for a in arguments if a.startswith(("seed", "hydra"))] for arguments in called] == [
        ["seed=3", f"hydra.run.dir={folder / '1'}"], ["seed=5", f"hydra.run.dir={folder / '2'}"],
    ]  # fmt: skip
    assert (folder / "earlier" / "1-1" / ".hydra" / "job.json").is_file() and not (folder / "1").exists()
    called.clear()
    (folder / "2" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (folder / "2" / "checkpoints" / "checkpoint-2" / "trainer_state.json").write_text("{}")  # the last that is written
    (folder / "2" / ".hydra").mkdir()
    assert main(["sweep", str(folder), "--resume", "--job", "2"]) == 1
    assert called == [[f"resume={folder / '2'}"]]


def test_resume_and_job_need_a_multirun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").mkdir()
    assert main(["sweep", str(tmp_path / "x"), "--resume"]) == 2
    assert "--resume needs one multirun's folder" in capsys.readouterr().err
    assert main(["sweep", str(tmp_path / "x"), "--job", "1"]) == 2
