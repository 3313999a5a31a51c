"""`dpo-diag sweep DIR --resume` runs what this user planned; of somebody else's plan nothing that leads elsewhere."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_diag.commands import sweep_resume
from dpo_diag.commands.diag import main
from dpo_diag.commands.resume_trust import SCRIPT, SWEEP_SIGNATURE, is_own_sweep, sign, sign_sweep
from dpo_diag.commands.sweep_resume import resume_jobs
from dpo_diag.records.checksums import yaml_bytes
from dpo_diag.records.jobs import Plan, end_plan, plan_of, this_process, write_plan

CODE = "model.trust_remote_code=true"


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, list[str]]]:
    """The processes that would be started: what of, and with which arguments."""
    seen: list[tuple[Plan, list[str]]] = []
    monkeypatch.setattr(sweep_resume, "_call", lambda plan, arguments: seen.append((plan, list(arguments))) or 1)
    return seen


def planned(folder: Path, *jobs: tuple[str, ...], hydra: tuple[str, ...] = (), cwd: str = "/") -> Plan:
    """A multirun that was planned and began none of its jobs."""
    folder.mkdir()
    plan = Plan("dpo-train", ("-m",), cwd, jobs, hydra, None, this_process())
    write_plan(folder, plan)
    end_plan(folder, "interrupted")
    return plan


def began(folder: Path, *overrides: str) -> None:
    """A job that Hydra made a folder for."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_bytes(yaml_bytes("".join(f"- {text}\n" for text in overrides)))


def in_place(folder: Path, num: int) -> str:
    return f"hydra.run.dir={folder / str(num)}"


def test_ones_own_sweep_is_resumed_without_a_word_until_somebody_edits_it(
    tmp_path: Path, called: list[tuple[Plan, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is taken, code and Hydra's own too, where it was planned; its end and a copy leave the signature true.
    After an edit that is whole by its checksum the line names what is asked for and how to take it; --trust does."""
    folder, logging = tmp_path / "mine", "hydra.job_logging.root.level=ERROR"
    plan = planned(folder, ("seed=1", CODE), ("seed=2", CODE), hydra=(logging,))
    sign_sweep(folder)
    end_plan(folder, "failed")
    folder.rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    assert main(["sweep", str(folder), "--resume", "--job", "0"]) == 1
    assert capsys.readouterr().err == "job 0, missing: again from the start\n"
    assert called == [(plan_of(folder), ["seed=1", CODE, in_place(folder, 0), logging])]
    called.clear()
    write_plan(folder, replace(plan, jobs=(("seed=1", "tracking.entity=them"),), state=this_process()))
    end_plan(folder, "interrupted")
    assert main(["sweep", str(folder), "--resume", "--job", "0"]) == 2 and not called
    (line,) = capsys.readouterr().err.splitlines()
    assert "not signed as yours" in line and f"in {folder}; got tracking.entity=them {logging}; hint: if you" in line
    assert line.endswith(f"if you trust it: dpo-diag sweep {folder} --resume --trust")
    assert main(["sweep", str(folder), "--resume", "--job", "0", "--trust"]) == 1
    assert called[0][1] == ["seed=1", "tracking.entity=them", in_place(folder, 0), logging] and called[0][0].cwd == "/"
    assert main(["sweep", str(folder), "--trust"]) == 2 and "belongs to --resume" in capsys.readouterr().err


def test_another_users_sweep_that_leads_nowhere_else_runs_here(
    tmp_path: Path, called: list[tuple[Plan, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither its folder to work in nor its program is taken: Python would import what lies there. No job goes on with
    another run than its own."""
    folder = tmp_path / "theirs"
    plan = planned(folder, ("seed=1",), cwd=str(tmp_path))
    write_plan(folder, replace(plan_of(folder) or plan, app="train.py", jobs=(("seed=1", "resume=/mine"),)))
    (folder / SWEEP_SIGNATURE).write_text("0" * 64)
    assert not is_own_sweep(folder) and resume_jobs(folder, [0]) == 1
    ((asked, arguments),) = called
    assert (asked.cwd, asked.app, arguments) == (os.curdir, "dpo-train", ["seed=1", in_place(folder, 0)])
    note = f"note: {folder} is not signed as yours: its jobs run here, not in {tmp_path}"
    assert capsys.readouterr().err.splitlines()[0] == note


def test_each_door_of_another_users_sweep(
    tmp_path: Path,
    called: list[tuple[Plan, list[str]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hydra's own overrides, a link, the script that Slurm would run, what a sweeper draws from, a job's own folder."""
    planned(tmp_path / "hydra", ("seed=1",), hydra=("+hydra.callbacks.x._target_=os.abort",))
    planned(tmp_path / "link", ("seed=1",))
    (tmp_path / "link" / "earlier").symlink_to(tmp_path)
    script = planned(tmp_path / "script", ("seed=1",))
    write_plan(tmp_path / "script", replace(script, state=replace(script.state, host="slurm", status="failed", pid=0)))
    (tmp_path / "script" / SCRIPT).write_text("#!/bin/sh\n")
    drawn = planned(tmp_path / "drawn", ("seed=1",))
    again = replace(drawn.state, status="failed")
    write_plan(tmp_path / "drawn", replace(drawn, jobs=None, arguments=("-m", CODE), n_trials=3, state=again))
    planned(tmp_path / "job", ("seed=1",))
    began(tmp_path / "job" / "0", "seed=1", CODE)
    monkeypatch.setattr("dpo_diag.commands.slurm.can_send", lambda: True)
    monkeypatch.setattr("dpo_diag.commands.slurm.send", lambda script, tasks: 7)
    for name, said in (
        ("hydra", "+hydra.callbacks.x._target_=os.abort"), ("script", SCRIPT), ("drawn", CODE), ("job", CODE),
        ("link", f"{tmp_path / 'link' / 'earlier'} -> {tmp_path}"),
    ):  # fmt: skip
        assert main(["sweep", str(tmp_path / name), "--resume"]) == 2
        assert f"got {said}; hint" in capsys.readouterr().err and not called
    sign_sweep(tmp_path / "script")
    assert main(["sweep", str(tmp_path / "script"), "--resume"]) == 0
    (tmp_path / "script" / SCRIPT).write_text("#!/bin/sh\nother\n")
    assert not is_own_sweep(tmp_path / "script")


def test_a_job_of_ones_own_sweep_that_somebody_changed_is_refused(
    tmp_path: Path, called: list[tuple[Plan, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was planned is taken from a job that another machine's key signed; what was not, is not; a job signed here
    may hold more than was planned (it was resumed with it)."""
    folder = tmp_path / "mine"
    planned(folder, ("seed=1", CODE), ("seed=2",), ("seed=3",))
    sign_sweep(folder)
    began(folder / "0", "seed=1", CODE)
    began(folder / "1", "seed=2", CODE)
    began(folder / "2", "seed=3", CODE)
    sign(folder / "2")
    (folder / "0" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (folder / "0" / "checkpoints" / "checkpoint-2" / "trainer_state.json").write_text("{}")
    assert resume_jobs(folder, [0]) == 1 and called.pop()[1] == [CODE, f"resume={folder / '0'}"]
    assert resume_jobs(folder, [2]) == 1 and called.pop()[1] == ["seed=3", CODE, in_place(folder, 2)]
    assert main(["sweep", str(folder), "--resume", "--job", "1"]) == 2 and not called
    assert f"got {CODE}; hint" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_imports_nothing_from_the_folder_it_runs_in(tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("open('ran', 'w').close()\n")
    plan = Plan("dpo-train", (), str(tmp_path), (), (), None, this_process())
    assert sweep_resume._call(plan, ["--cfg", "job"]) == 0
    assert not (tmp_path / "ran").exists()
