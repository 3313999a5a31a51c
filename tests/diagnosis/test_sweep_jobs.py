"""What became of each job, from what lies in its folder; which run did best; what a run has to show."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dpo_diag import RunWriter
from dpo_diag.commands.diag import main
from dpo_diag.commands.sweep_text import blocks
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.diagnosis.sweep_jobs import Job, jobs_of
from dpo_diag.diagnosis.sweep_words import short_names
from dpo_diag.records.files import write_json
from dpo_diag.records.jobs import (
    JOB_FILE,
    SWEEP_FILE,
    Plan,
    begin_job,
    end_job,
    job_state,
    plan_of,
    this_process,
    write_plan,
)
from dpo_diag.records.secrets import redacted_words


@pytest.fixture
def dead() -> tuple[int, int | None]:
    """The number of a process that has ended, and when it began."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid, 1


def job(folder: Path, *overrides: str, status: str | None = "finished", steps: int = 4) -> Path:
    """A job's folder: Hydra's files, and records up to a step unless `status` is None."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {t}\n" for t in overrides))
    if status is not None:
        writer = RunWriter(folder)
        writer.write("history", [{"step": steps, "split": "eval", "name": "loss", "value": 0.5, "weight": 2}])
        writer.update(training={"max_steps": 8})
        if status != "running":
            writer.finish(status)
    return folder


def plan(folder: Path, *jobs: tuple[str, ...], alive: bool) -> None:
    state = this_process() if alive else replace(this_process(), process_began=1)
    write_plan(folder, Plan("dpo-train", ("-m",), "/", jobs, (), None, state))


def by_name(folder: Path) -> dict[str, Job]:
    return {j.name: j for j in jobs_of([folder])[0]}


def test_every_planned_job_has_its_status_its_reason_and_where_to_look(
    tmp_path: Path, dead: tuple[int, int | None]
) -> None:
    """Six planned: one whole; one that failed with a word in its log; one stopped by hand; one killed at step 4; one
    that runs; one that never began. Ten jobs are in the order of their numbers."""
    plan(tmp_path, *[(f"x={i}",) for i in range(6)], alive=False)
    for i, status in enumerate(["finished", None, "interrupted", "running", "running"]):
        begin_job(job(tmp_path / str(i), f"x={i}", status=status), i)
    end_job(tmp_path / "0", "completed")
    (tmp_path / "1" / "dpo-train.log").write_text("failed: no room\n")
    end_job(tmp_path / "1", "failed", "OSError: no room")
    end_job(tmp_path / "2", "interrupted")
    state = job_state(tmp_path / "3")
    assert state is not None
    write_json(tmp_path / "3" / JOB_FILE, asdict(replace(state, pid=dead[0], process_began=dead[1])))
    jobs = by_name(tmp_path)
    assert [j.status for j in jobs.values()] == [
        "completed", "failed", "interrupted", "interrupted", "running", "missing",
    ]  # fmt: skip
    assert [(j.name, j.num) for j in jobs.values()] == [(str(i), i) for i in range(6)]
    assert [jobs[n].reason for n in "01235"] == [
        "", "OSError: no room", "stopped at step 4", "killed at step 4", "never begun: the sweep ended before it",
    ]  # fmt: skip
    assert jobs["1"].log == tmp_path / "1" / "dpo-train.log" and jobs["0"].log is None
    assert jobs["4"].progress == "step 4 of 8" and jobs["5"].overrides == {"x": "5"} and not jobs["5"].waits


def test_a_job_whose_turn_is_to_come_waits_while_its_multirun_lives(tmp_path: Path) -> None:
    plan(tmp_path, ("x=0",), alive=True)
    (only,) = jobs_of([tmp_path])[0]
    assert (only.status, only.waits, only.reason) == ("missing", True, "not begun yet")


def test_a_number_that_another_process_has_now_is_not_the_job(tmp_path: Path) -> None:
    state = replace(this_process(), process_began=1)  # this process did not begin at boot
    assert state.alive() is False and this_process().alive() is True
    assert replace(state, process_began=None, pid=os.getpid()).alive() is True
    assert replace(state, host="elsewhere").alive() is None
    assert socket.gethostname() == state.host


def test_a_job_elsewhere_runs_while_it_writes(tmp_path: Path) -> None:
    folder = job(tmp_path / "0", status="running")
    begin_job(folder, 0)
    state = job_state(folder)
    assert state is not None
    write_json(folder / JOB_FILE, asdict(replace(state, host="elsewhere")))
    assert jobs_of([folder])[0][0].status == "running"
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (0, 0))
    (found,) = jobs_of([folder])[0]
    assert (found.status, found.reason) == ("interrupted", "killed at step 4")


def test_without_a_word_a_job_ends_as_its_log_does(tmp_path: Path) -> None:
    folder = job(tmp_path / "0", status=None)
    (folder / "dpo-train.log").write_text("one\nCUDA out of memory\n\n")
    (found,) = jobs_of([folder])[0]
    assert found.status == "failed" and found.reason.endswith("its log ends: CUDA out of memory")


def test_a_job_that_is_run_again_keeps_its_number(tmp_path: Path) -> None:
    folder = job(tmp_path / "x", status=None)
    begin_job(folder, 7)
    end_job(folder, "failed", "why")
    begin_job(folder, None)
    state = job_state(folder)
    assert state is not None and (state.num, state.status, state.error) == (7, "running", None)


def test_a_plan_holds_no_secret(tmp_path: Path) -> None:
    assert redacted_words(["+trainer.args.hub_token=s3cret", "a.b=1", "-m"]) == (
        "+trainer.args.hub_token=[redacted]", "a.b=1", "-m",
    )  # fmt: skip
    plan(tmp_path, ("a=1",), alive=True)
    found = plan_of(tmp_path)
    assert found is not None and found.jobs == (("a=1",),) and plan_of(tmp_path / "0") is None


@pytest.mark.parametrize(
    ("name", "document"),
    [(SWEEP_FILE, []), (SWEEP_FILE, {}), (SWEEP_FILE, {"app": "a", "arguments": [], "cwd": "/", "jobs": [[1]]}),
     (JOB_FILE, {"status": "well"}), (JOB_FILE, {"status": "failed", "pid": "1"}), (JOB_FILE, [])],
)  # fmt: skip
def test_what_a_sweep_says_of_itself_in_another_form_is_told_in_a_line(
    tmp_path: Path, name: str | Path, document: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "0" if name == JOB_FILE else tmp_path
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    plan(tmp_path, ("a=1",), alive=False)
    (folder / name).write_text(json.dumps(document))
    assert main(["sweep", str(tmp_path), "--json"]) == 1
    told = capsys.readouterr()
    assert str(folder / name) in told.err + told.out and "Traceback" not in told.err


# --- ranking and values -----------------------------------------------------------------------------------------------


def scored(folder: Path, right: str, accuracy: float, ce: float, **facts: Any) -> Path:
    """A run over ten questions and one pair: at step 0 all wrong and a cross-entropy of 1; at the end `right`, "1" for
    each right answer, and `ce`; in between all right."""
    writer = RunWriter(folder)
    rows = []
    for step, marks, value in ((0, "0" * 10, 1.0), (5, "1" * 10, 0.5), (9, right, ce)):
        writer.write("outputs", [
            {"step": step, "model": "policy", "prompt_id": f"q{i}", "sample": 0, "prompt": "?", "text": mark,
             "correct": float(mark), "decoding_hash": "d", "tags": ["held_out"]} for i, mark in enumerate(marks)
        ])  # fmt: skip
        share = marks.count("1") / 10
        rows += [
            {"step": step, "split": "held_out", "name": "score/acc", "value": share, "weight": 10},
            {"step": step, "split": "eval", "name": "loss", "value": value, "weight": 2},
            {"step": step, "split": "eval", "name": "ce/chosen", "value": value, "weight": 2},
            {"step": step, "split": "eval", "name": "rewards/accuracies", "value": accuracy, "weight": 2},
        ]
    writer.write("history", rows)
    writer.update(**{"data": {"fingerprint": "one"}, "splits": {"eval": {"role": "held_out"}}, **facts})
    writer.finish()
    return folder


def test_the_task_ranks_first_then_reward_accuracy_then_the_least_rise(tmp_path: Path) -> None:
    """Six of ten right before five; of three with six the higher reward accuracy, then the smaller rise of chosen's
    cross-entropy: 0.5 before 1. Two that are equal in all share a rank. Against the best, one of ten questions is lost:
    -0.1, paired."""
    six, five = "1111110000", "1111100000"
    for name, (right, accuracy, ce) in {
        "a": (five, 0.9, 1.0), "b": (six, 0.5, 2.0), "c": (six, 0.5, 1.5), "d": (six, 0.7, 9.0), "e": (six, 0.5, 2.0),
    }.items():  # fmt: skip
        scored(tmp_path / name, right, accuracy, ce)
    found = sweep(tmp_path / "*")
    assert dict(zip("abcde", found.runs["rank"], strict=True)) == {"d": 1, "c": 2, "b": 3, "e": 3, "a": 5}
    assert found.ranking.by == ("acc[held_out]", "reward_accuracy", "chosen_ce_change")
    assert found.ranking.best == str(tmp_path / "d") and found.ranking.paired
    row = found.runs.iloc[0]
    assert row["to_best"] == pytest.approx(-0.1) and row["to_best_low"] < 0 < row["to_best_high"]
    assert found.ranked["run"].tolist()[0].endswith("d")


def test_before_best_and_last_with_their_steps(tmp_path: Path) -> None:
    found = sweep(scored(tmp_path / "a", "1111110000", 0.5, 2.0))
    row = found.runs.iloc[0]
    assert [row[f"acc[held_out]{e}"] for e in ("", "_start", "_best", "_best_step")] == [0.6, 0.0, 1.0, 5]
    assert [row[f"loss{e}"] for e in ("", "_start", "_best", "_best_step")] == [2.0, 1.0, 0.5, 5]
    assert row["chosen_ce_change"] == 1.0
    assert found.before == {"loss": 1.0, "reward_accuracy": 0.5, "chosen_ce": 1.0, "acc[held_out]": 0.0}


def test_other_data_or_tokenizers_are_ranked_by_the_task_alone_or_not_at_all(tmp_path: Path) -> None:
    six = "1111110000"
    scored(tmp_path / "a", six, 0.5, 1.0, tokenizer={"fingerprint": "one"})
    scored(tmp_path / "b", six, 0.9, 1.0, tokenizer={"fingerprint": "two"})
    found = sweep(tmp_path / "*")
    assert found.ranking.by == ("acc[held_out]",) and found.runs["rank"].tolist() == [1, 1]
    for name in "cd":
        job(tmp_path / "unscored" / name, status="finished")
    other = sweep(tmp_path / "unscored" / "*")
    assert other.runs["rank"].isna().all() and other.ranking.why_not


def test_a_wide_table_becomes_blocks_that_repeat_its_first_columns() -> None:
    """Columns of 10 and 12 cells behind a key of 3: in 20 cells one stands beside it, in 40 both."""
    rows = [["k1", "a" * 10, "b" * 12]]
    assert blocks(["key", "one", "two"], rows, 1, 20) == ["key  one", "k1   " + "a" * 10, "", "key  two",
                                                         "k1   " + "b" * 12]  # fmt: skip
    assert len(blocks(["key", "one", "two"], rows, 1, 40)) == 2
    assert short_names(["loss.beta", "a.lr", "b.lr", "seed"]) == ["beta", "a.lr", "b.lr", "seed"]


def test_json_of_an_unfinished_sweep_names_every_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(tmp_path, ("x=0",), ("x=1",), alive=False)
    job(tmp_path / "0", "x=0")
    assert main(["sweep", str(tmp_path), "--json", "--no-verdicts"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(r["job"], r["status"], r["overrides"]) for r in document["runs"]] == [
        (0, "completed", {"x": 0}), (1, "missing", {"x": 1}),
    ]  # fmt: skip
    assert document["next"][0] == f"dpo-diag sweep {tmp_path} --resume"
