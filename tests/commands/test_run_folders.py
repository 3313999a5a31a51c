"""What happens to a run's folder before and behind a job: its name, who holds it, how a stopped job is told."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from dpo_diag.commands.hydra_app import run_app
from dpo_diag.commands.sweep_text import lines
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.diagnosis.sweep_jobs import jobs_of
from dpo_diag.errors import DiagError
from dpo_diag.records.run_lock import OWN
from tests.records.test_run_lock import HOLDER

YEAR = "hydra.run.dir='${output_root}/${name}/${now:%Y}'"
"""Every start of a year is one of the same second."""


def started(*arguments: str) -> tuple[int, list[Path]]:
    """Exit status, and the folders of the jobs."""
    folders: list[Path] = []

    def job(cfg: Any) -> None:
        folders.append(Path(HydraConfig.get().runtime.output_dir))
        (folders[-1] / "made").write_text(str(cfg.seed))

    return run_app("dpo-train", "config", job, list(arguments)), folders


def test_two_starts_of_one_second_get_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of a Slurm array has its number in the name; nothing of the lock stays."""
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    root = f"output_root={tmp_path}"
    first, second = (started(root, YEAR, f"seed={seed}")[1][0] for seed in (1, 2))
    assert second.name == f"{first.name}-2"
    assert [(p / "made").read_text() for p in (first, second)] == ["1", "2"]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    assert started(root, YEAR)[1][0].name == f"{first.name}_7"
    assert not [p for p in tmp_path.rglob(".run*") if p.name in OWN]


def test_two_multiruns_of_one_second_get_two_folders(tmp_path: Path) -> None:
    sweep = ["-m", f"output_root={tmp_path}", "hydra.sweep.dir='${output_root}/${name}/${now:%Y}'", "seed=1,2"]
    found = [[f.parent.name for f in started(*sweep)[1]] for _ in range(2)]
    assert found[1] == [f"{found[0][0]}-2"] * 2 and found[0][0] == found[0][1]
    assert len(list(tmp_path.glob("run/*/sweep.json"))) == 2


@pytest.mark.parametrize("name", ["'../../x'", "'a\nb'", "x" * 300, "/etc/dpo", "'..'", "'a/../../../x'"])
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_a_name_that_leads_elsewhere_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, mode: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    assert started(*mode, f"output_root={root}", f"name={name}") == (2, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dpo-train: not a name for a folder; in name; got ")
    assert [*tmp_path.rglob("*")] == [tmp_path / "deep", root]


def test_the_folder_of_a_job_stays_in_that_of_its_multirun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A subfolder made of the overrides: one that leads out is refused, a long one is cut and stays unique."""
    place = [f"hydra.sweep.dir={tmp_path / 'deep' / 's'}", "hydra.sweep.subdir=${hydra.job.override_dirname}", "seed=1"]
    status, _ = started("-m", *place, "model.tokenizer=../../../../x")
    assert status == 2 and "not a name for a folder" in capsys.readouterr().err
    assert {p.name for p in tmp_path.rglob("*")} <= {"deep", "s", "sweep.json"}
    _, folders = started("-m", *place, f"model.tokenizer={'x' * 300},{'x' * 299}y")
    assert len({f.name for f in folders}) == 2 and all(len(f.name) <= 120 for f in folders)


def test_a_run_that_another_process_writes_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """resume=, and a folder that was named: Hydra would write its configuration over the other's."""
    run = tmp_path / "r"
    (run / ".hydra").mkdir(parents=True)
    overrides = run / ".hydra" / "overrides.yaml"
    overrides.write_text("- seed=3\n")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        for arguments in ([f"resume={run}"], [f"hydra.run.dir={run}"]):
            assert started(*arguments) == (1, [])
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"dpo-train: another process writes this run; in {run}; got process {other.pid}")
        assert [p.name for p in run.iterdir() if p.name not in OWN] == [".hydra"]
        assert overrides.read_text() == "- seed=3\n"
        other.kill()
    assert started(f"resume={run}")[0] == 0


@pytest.mark.parametrize("app", [pytest.param("score", marks=pytest.mark.slow), "generate"])
def test_where_out_is_the_run_no_other_folder_is_made(
    tmp_path: Path, app: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Hydra writes of the job is gone with it, failed or not; a URL, or a folder that the user named for it, has
    one. A job of a multirun has its own in any case: the multirun's record of it."""
    monkeypatch.chdir(tmp_path)
    places: list[Path] = []

    def job(cfg: Any) -> None:
        places.append(Path(HydraConfig.get().runtime.output_dir))
        assert places[-1].is_dir()
        if cfg.seed == 3:
            raise DiagError("a mistake")

    given = [f"dpo-{app}", app, job]
    for seed, status in ((1, 0), (3, 1)):
        assert run_app(*given, ["out=mine", f"seed={seed}"]) == status
        assert not places[-1].exists() and not [*tmp_path.iterdir()]
        logs = [h.baseFilename for h in logging.root.handlers if isinstance(h, logging.FileHandler)]
        assert not any(Path(name).is_relative_to(places[-1]) for name in logs)  # what is logged later goes elsewhere
    for more in (["out=memory://x/y"], ["out=mine", "hydra.run.dir=own"], ["out=null"]):
        assert run_app(*given, more) == 0
        assert places[-1].is_relative_to(tmp_path) and (places[-1] / ".hydra" / "job.json").is_file()
    assert run_app(*given, ["-m", "out=mine", "seed=1,2"]) == 0
    jobs, _ = jobs_of([str(places[-1].parent)])
    assert [job.status for job in jobs] == ["completed", "completed"]  # its records lie where `out` says
    assert capsys.readouterr().err.startswith(f"dpo-{app}: a mistake\n")
    assert lines(sweep(places[-1].parent), 80) == ["", "2 jobs measured into another folder: mine"]


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """Ctrl-C is heard, as it is not in what a shell starts in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize(("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"),
                                                        (signal.SIGTERM, 143, "terminated")])  # fmt: skip
def test_a_job_that_is_stopped_before_it_did_anything_names_the_command_that_starts_it_again(
    tmp_path: Path, number: signal.Signals, status: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a model is loaded, say: the folder goes, since nothing is in it; paths are quoted."""
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def job(cfg: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)  # the system may hand the signal to another thread first

    root = tmp_path / "with space"
    assert run_app("dpo-train", "config", job, [f"output_root='{root}'", "seed=1"]) == status
    assert capsys.readouterr().err.splitlines() == [
        f"dpo-train: {word}", f"next: dpo-train 'output_root='\"'\"'{root}'\"'\"'' seed=1",
    ]  # fmt: skip
    assert not root.exists()
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "the disk is full; in a/b; hint: make room"),
        (OSError(errno.EFBIG, "File too large"),
         "a file would be larger than the limit; hint: raise the limit: ulimit -f unlimited"),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28]"), "the disk is full; hint: make room"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
         "a file could not be written to its end; got a full disk, or a limit; hint: make room"),
        (MemoryError(), "out of memory; got MemoryError; hint: smaller batches, a shorter max_length"),
    ],
)  # fmt: skip
def test_what_the_machine_ran_out_of_is_one_line(
    tmp_path: Path, error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(cfg: Any) -> None:
        raise error

    assert run_app("dpo-train", "config", job, [f"output_root={tmp_path}"]) == 1
    assert capsys.readouterr().err.splitlines() == [f"dpo-train: {line}"]


def test_any_other_error_keeps_its_traceback(tmp_path: Path) -> None:
    def job(cfg: Any) -> None:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run_app("dpo-train", "config", job, [f"output_root={tmp_path}"])
