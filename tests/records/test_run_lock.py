"""One process at a time writes a run folder; who is refused reads whose it is and how to go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter, load_run, run_lock
from dpo_diag.records.process import this
from dpo_diag.records.run_lock import LOCK, OWNER, before_first_record, claimed, hold, writing
from dpo_diag.text import to_json

HOLDER = "import sys; from dpo_diag.records.run_lock import hold; hold(sys.argv[1]); print('held', flush=True); input()"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path/r."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "r")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()


def test_a_second_process_is_refused_and_told_whose_it_is_until_the_first_is_killed(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    """A writer and a bare hold are refused while the other lives; killed, it leaves its name, which blocks nobody."""
    run = tmp_path / "r"
    for take in (hold, RunWriter):
        with pytest.raises(
            DiagError, match=f"another process writes this run.*process {other.pid}, .*kill {other.pid}"
        ):
            take(run)
    assert not (run / "run.json").exists()
    other.kill()
    other.wait()
    assert (run / OWNER).exists()
    writer = RunWriter(run)
    writer.finish()
    assert sorted(p.name for p in run.iterdir()) == ["run.json"]


def test_it_is_held_again_within_a_process_and_free_behind_the_last(tmp_path: Path) -> None:
    """hold, a writer, `writing`: the name stands until the last of them ends; one that is thrown away ends."""
    run = tmp_path / "r"
    release = hold(run)
    writer = RunWriter(run)
    with writing(run):
        writer.finish()
    assert (run / OWNER).exists()
    release()
    release()  # a second time: nothing
    assert not (run / OWNER).exists() and not (run / LOCK).exists()
    thrown = RunWriter(run, resume_step=0)
    assert (run / OWNER).exists()
    del thrown
    assert not (run / OWNER).exists()


def test_a_forked_child_neither_holds_nor_frees_it(tmp_path: Path) -> None:
    """A data loader's worker ends: its parent's lock stays."""
    run = tmp_path / "r"
    with writing(run):
        child = os.fork()
        if child == 0:
            os._exit(0 if not run_lock._HELD else 1)
        assert os.waitpid(child, 0)[1] == 0
        script = "import sys; from dpo_diag.records.run_lock import hold; hold(sys.argv[1])"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        second = subprocess.run(
            [sys.executable, "-c", script, str(run)], capture_output=True, text=True, env=environment
        )
        assert "another process writes this run" in second.stderr


def test_another_machine_that_gives_signs_of_life_is_believed_and_a_silent_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system whose locks do not reach: the lock is free, another machine's name is on it. Its time changes while
    we look: refused. It does not change: taken over, with one line."""
    run = tmp_path / "r"
    run.mkdir()
    monkeypatch.setattr(run_lock, "SILENT", 0.5)
    owner = {"host": "node7", "kernel": "another", "pid": 12, "began": 5, "command": "dpo-train", "since": "today"}
    (run / OWNER).write_text(json.dumps(owner))
    said: list[str] = []
    beat = threading.Timer(0.2, os.utime, [run / OWNER, (1, 1)])
    beat.start()
    with pytest.raises(DiagError, match=f"process 12 on node7, dpo-train, since today.*remove {run / LOCK}"):
        hold(run, said.append)
    beat.join()
    hold(run, said.append)()
    assert len(said) == 2 and said[0].endswith("waiting 0 s for a sign of life") and "process 12 on node7" in said[0]
    assert list(run.iterdir()) == []


def test_a_folder_that_somebody_has_gets_a_number_behind_its_name(tmp_path: Path) -> None:
    assert [claimed(tmp_path / "a" / "b").name for _ in range(3)] == ["b", "b-2", "b-3"]


def test_sixteen_threads_of_one_moment_get_sixteen_folders(tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(claimed(tmp_path / "now"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 16


def test_killed_writers_leave_nothing_that_the_next_one_keeps(tmp_path: Path) -> None:
    """Half of a parquet and of a run.json go at once; a report's, which may be somebody's, when it is a minute old."""
    run = tmp_path / "r"
    RunWriter(run).finish()
    (run / "pairs").mkdir()
    nobody = 99_999_999  # beyond the highest number of a process
    left = [run / "pairs" / f".00000001-00000001.train.r0.parquet.{nobody}.tmp", run / f".run.json.{nobody}.tmp"]
    young, old = run / f".report.html.{nobody}.tmp", run / ".findings.json.1.tmp"
    for path in (*left, young, old):
        path.write_text("half")
    os.utime(old, (1, 1))
    RunWriter(run, resume_step=0).finish()
    assert sorted(p.name for p in run.rglob(".*")) == [young.name]


def test_what_is_added_to_a_trained_run_leaves_its_status_alone(tmp_path: Path) -> None:
    """While answers are added the status is the training's, and so are the versions of its packages: a process that is
    killed then leaves no run that seems to train."""
    from dpo_diag.records.adding import added_to

    for status in ("finished", "interrupted", "failed"):
        run = tmp_path / status
        writer = RunWriter(run)
        writer.update(packages={"torch": "1.0"})
        writer.finish(status, "why" if status == "failed" else None)
        before = load_run(run).meta
        with pytest.raises(RuntimeError, match="killed"), added_to(run) as (adding, _):
            row = {"step": 1, "split": "eval", "name": "score/a", "value": 1.0}
            adding.write("history", [row])
            assert load_run(run).meta["status"] == status
            raise RuntimeError("killed")
        after = load_run(run).meta
        assert {k: after.get(k) for k in ("status", "error", "ended", "packages")} == {
            k: before.get(k) for k in ("status", "error", "ended", "packages")
        }
        assert len(load_run(run).history) == 1


def test_a_number_that_another_program_has_by_now_blocks_nobody(tmp_path: Path) -> None:
    """Where the system does not say when a process began, a free lock decides: pid 1 runs, and wrote nothing."""
    mine = run_lock.this()
    owner = {
        "host": mine.host,
        "kernel": mine.kernel,
        "pid": 1,
        "began": None,
        "command": "dpo-train",
        "since": "today",
    }
    (tmp_path / OWNER).write_text(json.dumps(owner))
    hold(tmp_path)()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_a_lock_goes_with_it_unless_something_is_in_it(tmp_path: Path) -> None:
    with writing(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").mkdir()
    with writing(tmp_path / "own"):
        pass
    with writing(tmp_path / "a" / "b"):
        (tmp_path / "a" / "c").mkdir()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "c", "own"]


def test_what_a_start_left_before_its_first_record_is_told(tmp_path: Path) -> None:
    (tmp_path / OWNER).write_text(to_json(asdict(this())), encoding="utf-8")
    assert "has recorded nothing yet" in str(before_first_record(tmp_path))
    (tmp_path / OWNER).write_text(to_json(asdict(replace(this(), began=-1))), encoding="utf-8")
    assert "ended before its first record" in str(before_first_record(tmp_path))
    (tmp_path / "log.txt").write_text("", encoding="utf-8")
    assert before_first_record(tmp_path) is None
