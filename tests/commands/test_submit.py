"""A multirun as a Slurm job array, with an sbatch that runs the tasks here."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from dpo_diag import RunWriter
from dpo_diag.commands.diag import main
from dpo_diag.commands.resume_trust import is_own_sweep
from dpo_diag.records.jobs import begin_job, end_job, plan_of

TASK = ["task=sql", "model=task", "data=task", "prompts=task"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `sbatch` that notes its arguments, prints a number as Slurm's does, and refuses a script that says so."""
    place = tmp_path / "bin"
    place.mkdir()
    program = place / "sbatch"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/sent\n'
        'if grep -q "gres=moon" "$2"; then echo "sbatch: error: Invalid generic resource" >&2; exit 1; fi\n'
        'echo "4711;cluster"\n'
    )
    queue = place / "squeue"
    queue.write_text(
        f"#!/bin/sh\ncat {tmp_path}/queue 2>/dev/null && exit 0\n"
        'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1\n'
    )
    for each in (program, queue):
        each.chmod(each.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "sent"


def submitted(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Path:
    assert main(["submit", *TASK, f"output_root={folder}", "name=x", "seed=0,1,2", *more]) == 0
    return Path(capsys.readouterr().out.strip())


def test_a_job_array_is_sent_and_its_jobs_wait(slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two betas and two seeds: tasks 0 to 3, two at a time; the sweep's folder knows all four before any begins."""
    runs = tmp_path / "runs"
    command = ["submit", "-m", *TASK, f"output_root={runs}", "name=x", "loss.beta=0.1,2", "seed=0,1",
               "--sbatch", "time=02:00:00", "--sbatch", "gres=gpu:1", "--concurrent", "2"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr()
    folder = Path(said.out.strip())
    assert folder.parent == runs / "x"
    script = folder / "submit.sh"
    assert slurm.read_text().strip() == f"--parsable {script}" and "Slurm job 4711" in said.err
    lines = script.read_text().splitlines()
    assert "#SBATCH --array=0-3%2" in lines and "#SBATCH --gres=gpu:1" in lines and "#SBATCH --time=02:00:00" in lines
    assert lines[-1].endswith(f'sweep {folder} --resume --trust --job "$SLURM_ARRAY_TASK_ID"')
    assert said.err.splitlines()[-1] == f"next: dpo-diag sweep {folder} --watch"
    plan = plan_of(folder)
    assert plan is not None and plan.jobs is not None and plan.app == "dpo-train" and is_own_sweep(folder)
    assert [job[-2:] for job in plan.jobs] == [(f"loss.beta={b}", f"seed={s}") for b in ("0.1", "2") for s in "01"]
    assert main(["sweep", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["runs"]
    assert [(r["job"], r["status"], r["reason"]) for r in told] == [(i, "missing", "not begun yet") for i in range(4)]


def test_what_cannot_run_is_not_sent(slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that one job alone has wrong, an unknown key, a sweeper that draws, an option that is none."""
    runs = f"output_root={tmp_path / 'runs'}"
    for wrong, said in (
        ("trainer.learning_rate=1e-4,-1", "trainer.learning_rate"), ("loss.bate=1", "unknown key"),
        ("hydra/sweeper=optuna", "needs a process that waits"), ("loss.beta=much", "could not be converted"),
    ):  # fmt: skip
        assert main(["submit", *TASK, runs, wrong]) == 2
        assert said in capsys.readouterr().err
    assert main(["submit", *TASK, runs, "--sbatch", "a b=1"]) == 2
    assert not slurm.exists() and not (tmp_path / "runs").exists()


def test_a_refusal_and_an_absent_sbatch_name_the_script(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = f"output_root={tmp_path / 'runs'}"
    assert main(["submit", *TASK, runs, "name=a", "--sbatch", "gres=moon"]) == 1
    assert "sbatch refused it" in (told := capsys.readouterr().err) and "Invalid generic resource" in told
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", *TASK, runs, "name=b"]) == 1
    assert "sbatch is not on this machine; hint: on the login node: sbatch " in capsys.readouterr().err
    assert main(["submit", *TASK, runs, "name=c", "--dry-run"]) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("next: sbatch ")


def test_no_secret_is_written_and_a_folder_may_have_any_name(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task could not be given what is not written: refused before anything is. Slurm reads % in a file's name, and a
    blank ends it. Hydra's own override of a job reaches each of them, the sweep's does not."""
    runs = tmp_path / "50% off"
    command = ["submit", *TASK, f'output_root="{runs}"', "name=x", "seed=0,1"]
    assert main([*command, "tracking.webhook_token=hunter2"]) == 2
    assert "hunter2" not in "".join(capsys.readouterr()) and not runs.exists()
    assert (
        main([*command, "hydra.job_logging.root.level=ERROR", "hydra.sweep.subdir=j${hydra.job.num}", "--dry-run"]) == 0
    )
    folder = Path(capsys.readouterr().out.strip())
    assert f"#SBATCH --output='{str(folder).replace('%', '%%')}/slurm-%a.out'" in (folder / "submit.sh").read_text()
    plan = plan_of(folder)
    assert plan is not None and plan.hydra == ("hydra.job_logging.root.level=ERROR",)


def test_what_did_not_complete_is_sent_again(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Task 1 completed; 0 failed and 2 never began: those two are sent, one at a time as before, once the queue is
    empty. Without sbatch the line says that they run here."""
    folder = submitted(tmp_path / "runs", capsys, "--concurrent", "1")
    for num, status in ((0, "failed"), (1, "completed")):
        begin_job(folder / str(num), num)
        end_job(folder / str(num), status)
    RunWriter(folder / "1").finish()
    (tmp_path / "queue").write_text("PENDING (Resources)\nPENDING (Resources)\n")
    assert main(["sweep", str(folder), "--resume"]) == 1
    assert "still in Slurm's queue" in (said := capsys.readouterr().err) and "got 2 PENDING (Resources)" in said
    (tmp_path / "queue").unlink()
    slurm.unlink()
    assert main(["sweep", str(folder), "--resume"]) == 0
    assert slurm.read_text().strip() == f"--parsable --array=0,2%1 {folder / 'submit.sh'}"
    said = capsys.readouterr().err
    assert "2 jobs again: Slurm job 4711" in said and said.splitlines()[-1] == f"next: dpo-diag sweep {folder} --watch"
    run_here: list[int] = []
    monkeypatch.setattr("dpo_diag.commands.sweep_resume._run_again", lambda f, p, job: run_here.append(job.num))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["sweep", str(folder), "--resume"]) == 1
    assert run_here == [0, 2]
    assert "ran with Slurm (sbatch is not on this machine); these jobs run here, one after" in capsys.readouterr().err


def test_following_ends_where_nothing_will_begin(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While tasks wait in the queue they are waited for; when Slurm knows none of them any more, or for so long
    nothing began and no squeue tells, the line says so and the table follows."""
    folder = submitted(tmp_path / "runs", capsys)
    (tmp_path / "queue").write_text("PENDING (Dependency)\n")
    looks: list[float] = []

    def later(seconds: float) -> None:
        looks.extend([seconds] * (seconds == 7))  # a subprocess is waited for in shorter sleeps
        if len(looks) == 3:
            (tmp_path / "queue").unlink(missing_ok=True)

    monkeypatch.setattr("time.sleep", later)
    assert main(["sweep", str(folder), "--watch", "--interval", "7"]) == 1
    assert len(looks) == 3
    assert "Slurm has no task of 4711 any more: the rest never began" in capsys.readouterr().err
    (tmp_path / "bin" / "squeue").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("dpo_diag.commands.sweep_watch.PATIENCE", 0.0)
    assert main(["sweep", str(folder), "--watch"]) == 1
    assert "nothing here tells whether one will" in capsys.readouterr().err
