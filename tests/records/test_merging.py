"""Many small files become few while the run goes on: no row is lost or doubled, whenever the writer is killed, whoever
reads meanwhile, and whatever is written again, cut or resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.errors import DamagedRecords, DiagError
from dpo_diag.records import RunWriter, load_run, merging
from dpo_diag.records.files import Part
from dpo_diag.records.health import check_run
from dpo_diag.records.parts import Merged, listed, visible


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Merge every 4 files, and at the end from 2 on."""
    monkeypatch.setattr(merging, "MANY", 4)
    monkeypatch.setattr(merging, "FEW", 2)
    yield


def row(step: int, value: float = 0.0, name: str = "loss", split: str = "train") -> dict[str, Any]:
    return {"step": step, "split": split, "name": name, "value": value}


def names(run: Path, table: str = "history") -> list[str]:
    return sorted(p.name for p in (run / table).iterdir())


def rows(run: Path) -> list[tuple[int, str, float]]:
    """Raw rows, in the order of the files: nothing is dropped as a duplicate."""
    frame = load_run(run).read("history", ["step", "name", "value"])
    return list(frame.itertuples(index=False, name=None))


def test_files_are_merged_while_the_run_goes_on_and_at_its_end(tmp_path: Path) -> None:
    """10 steps: at the 4th file one of 1 to 4; at the 8th the next four with it, since it is no larger than twice their
    bytes; 9 and 10 join at the end. Every row is there once, in order."""
    writer, run = RunWriter(tmp_path / "r"), tmp_path / "r"
    for step in range(1, 11):
        writer.write("history", [row(step, step / 2)], "train")
        if step == 4:
            assert names(run) == ["00000001-00000004.~1.r0.parquet"]
    assert names(run) == [
        "00000001-00000008.~2.r0.parquet", "00000009-00000009.train.r0.parquet", "00000010-00000010.train.r0.parquet",
    ]  # fmt: skip
    assert [p.name for p in load_run(run).files("history", [9])] == ["00000009-00000009.train.r0.parquet"]
    writer.finish()
    assert names(run) == ["00000001-00000010.~3.r0.parquet"]
    assert rows(run) == [(step, "loss", step / 2) for step in range(1, 11)]
    assert load_run(run).read("history", ["value"], steps=[3, 9])["value"].tolist() == [1.5, 4.5]


def test_a_merged_file_names_what_stands_in_it_and_what_it_replaced(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    for step in range(1, 5):
        writer.write("history", [row(step)] * step, "train")
    (path,) = (tmp_path / "r" / "history").iterdir()
    merged = Merged.of(path)
    parts = [Part(s, s, "train", 0).name for s in range(1, 5)]
    assert merged == Merged(tuple(zip(parts, (1, 2, 3, 4), strict=True)), tuple(parts))


def test_writing_a_merged_step_again_replaces_its_rows(tmp_path: Path) -> None:
    """Steps 1 to 4 are one file; step 2 is written again with one row for its two."""
    writer = RunWriter(tmp_path / "r")
    for step in range(1, 5):
        writer.write("history", [row(step), row(step, name="margin")], "train")
    path = writer.write("history", [row(2, 7.0)], "train")
    assert path is not None and names(tmp_path / "r") == [path.name]
    expected = {(s, n, 0.0) for s in (1, 3, 4) for n in ("loss", "margin")} | {(2, "loss", 7.0)}
    assert len(rows(tmp_path / "r")) == 7 and set(rows(tmp_path / "r")) == expected
    other = RunWriter(tmp_path / "r", resume_step=4)
    other.write("history", [row(3, 8.0)], "train")  # by a writer that did not merge it
    assert sorted(r for r in rows(tmp_path / "r") if r[0] == 3) == [(3, "loss", 8.0)]


def test_resuming_cuts_a_merged_file(tmp_path: Path) -> None:
    """Files of steps 1-3, 4-6, 7-9 and 10-12, one by now; resumed at 5, then 6 to 9 written anew."""
    writer = RunWriter(tmp_path / "r")
    for first in (1, 4, 7, 10):
        writer.write("history", [row(s) for s in range(first, first + 3)], "train")
    writer = RunWriter(tmp_path / "r", resume_step=5)
    assert names(tmp_path / "r") == ["00000001-00000005.~2.r0.parquet"]
    for steps in ((6,), (7, 8, 9)):
        writer.write("history", [row(s, 1.0) for s in steps], "train")
    writer.finish()
    assert rows(tmp_path / "r") == [(s, "loss", float(s > 5)) for s in range(1, 10)]


def test_every_rank_merges_its_own_files_and_rank_0_cuts_those_of_all(tmp_path: Path) -> None:
    writers = [RunWriter(tmp_path / "r", rank=rank) for rank in (0, 1)]
    for step in range(1, 6):
        for writer in writers:
            writer.write("pairs", [pair(step, f"p{writer.rank}")], "train")
    for writer in writers:
        writer.finish()
    assert names(tmp_path / "r", "pairs") == ["00000001-00000005.~2.r0.parquet", "00000001-00000005.~2.r1.parquet"]
    assert len(load_run(tmp_path / "r").pairs) == 10
    RunWriter(tmp_path / "r", resume_step=3)
    pairs = load_run(tmp_path / "r").read("pairs", ["step", "pair_id"])
    assert sorted(pairs.itertuples(index=False, name=None)) == [(s, p) for s in (1, 2, 3) for p in ("p0", "p1")]


def pair(step: int, pair_id: str) -> dict[str, Any]:
    return {"step": step, "split": "train", "role": "policy", "pair_id": pair_id, "side": "chosen", "sum_logp": -1.0}


def test_a_large_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is larger than 100 bytes: none is merged, and none is asked for again at each write."""
    monkeypatch.setattr(merging, "LARGE", 100)
    writer = RunWriter(tmp_path / "r")
    for step in range(9):
        writer.write("history", [row(step)], "train")
    writer.finish()
    assert len(names(tmp_path / "r")) == 9


def test_a_damaged_file_stays_and_fails_no_training(tmp_path: Path) -> None:
    writer, run = RunWriter(tmp_path / "r"), tmp_path / "r"
    for step in range(3):
        writer.write("history", [row(step)], "train")
    (run / "history" / Part(1, 1, "train", 0).name).write_bytes(b"PAR1half")
    for step in range(3, 9):
        writer.write("history", [row(step)], "train")
    writer.finish()
    with pytest.warns(DamagedRecords, match="rows are left out: a record file cannot be read"):
        assert rows(run) == [(s, "loss", 0.0) for s in (0, *range(2, 9))]
    (run / "history" / Part(1, 1, "train", 0).name).unlink()
    RunWriter(run, resume_step=8).finish()
    assert rows(run) == [(s, "loss", 0.0) for s in (0, *range(2, 9))]
    assert len(names(run)) == 1


# ---- killed at any moment ----


class Killed(BaseException):
    """In place of a SIGKILL, at one renaming or removal."""


Step = tuple[str, int, int]
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 12), st.integers(0, 3)),
        st.tuples(st.just("cut"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("merge"), st.just(0), st.just(0)),
    ),
    min_size=4,
    max_size=25,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(STEPS, st.integers(0, 80))
def test_whatever_is_done_a_kill_loses_and_doubles_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step], killed_at: int
) -> None:
    """Against a dict of parts: after a kill the rows are those before or after the change that was being made (a cut
    goes file by file: then those that it keeps, each once, and some of those that it drops); the next writer leaves no
    replaced file behind, and goes on as if nothing had been."""
    run, model, done = tmp_path_factory.mktemp("k") / "r", {}, 0
    calls = [0]

    def counted(original: Any) -> Any:
        def call(self: Path, *args: Any, **kwargs: Any) -> Any:
            calls[0] += self.suffix in (".parquet", ".tmp") and "history" in self.parts
            if calls[0] == killed_at:
                raise Killed
            return original(self, *args, **kwargs)

        return call

    def apply(writer: RunWriter, parts: dict[tuple[int, int], float], index: int) -> None:
        what, first, more = steps[index]
        if what == "write":
            writer.write("history", [row(s, index) for s in range(first, first + more + 1)], "train")
            parts[first, first + more] = index
        elif what == "merge":
            writer.merge()
        else:
            writer.drop_after(first)
            cut = {(a, min(b, first)): v for (a, b), v in parts.items() if a <= first}
            parts.clear()
            parts.update(cut)

    def of(parts: dict[tuple[int, int], float]) -> list[tuple[int, str, float]]:
        return sorted((s, "loss", v) for (a, b), v in parts.items() for s in range(a, b + 1))

    writer = RunWriter(run)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        try:
            for index in range(len(steps)):
                # Two parts that are cut to the same steps have one name: their rows cannot be told apart any more.
                if steps[index][0] == "cut" and len({(a, min(b, steps[index][1])) for a, b in model}) < len(model):
                    steps[index] = ("merge", 0, 0)
                done = index
                apply(writer, model, index)
            done = len(steps)
        except Killed:
            pass
    before, found = of(model), sorted(rows(run))
    if done < len(steps):
        after = dict(model)
        apply(RunWriter(run, resume_step=99), after, done)
        if steps[done][0] == "cut":
            assert set(of(after)) <= set(found) <= set(before) and len(found) == len(set(found))
        else:
            assert found in (before, of(after))
        model = after
    assert sorted(rows(run)) == of(model)
    writer = RunWriter(run, resume_step=99)
    for index in range(done + 1, len(steps)):
        if steps[index][0] != "cut":
            apply(writer, model, index)
    writer.finish()
    assert sorted(rows(run)) == of(model)
    assert listed(run / "history") == visible(run / "history")


WRITER = """
import os, signal, sys
from pathlib import Path
from dpo_diag.records import RunWriter, merging
merging.MANY = 4
run, killed_at = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def counted(original):
    def call(self, *args, **kwargs):
        global calls
        if "history" in self.parts:
            calls += 1
            if calls == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)
    return call

def write(run):
    writer = RunWriter(run)
    for step in range(1, 41):
        writer.write("history", [{"step": step, "split": "train", "name": "loss", "value": float(step)}], "train")
        print(step, flush=True)
    writer.finish()

if killed_at:
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
"""


def test_really_killed_between_writing_renaming_and_removing(tmp_path: Path) -> None:
    """One process a kill, at the 1st, 14th, 27th, ... renaming or removal: every step that was written before is there
    once, and a second writer ends with 40 rows in one file, nothing beside it."""
    script = WRITER + textwrap.dedent("""
    for killed_at in range(1, 100, 13):  # forked: what is imported is imported once
        if os.fork() == 0:
            out = os.open(run / f"{killed_at}.said", os.O_CREAT | os.O_WRONLY)
            os.dup2(out, 1)
            Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
            write(run / str(killed_at))
            os._exit(0)
        os.wait()
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "0"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cut_short = 0
    for killed_at in range(1, 100, 13):
        said, run = (tmp_path / f"{killed_at}.said").read_text().split(), tmp_path / str(killed_at)
        steps = [step for step, _, _ in rows(run)]
        assert steps in (list(range(1, len(said) + 1)), list(range(1, len(said) + 2))), killed_at
        cut_short += len(steps) < 40
        writer = RunWriter(run, resume_step=len(steps))
        for step in range(len(steps) + 1, 41):
            writer.write("history", [row(step, float(step))], "train")
        writer.finish()
        assert rows(run) == [(s, "loss", float(s)) for s in range(1, 41)]
        assert [n for n in names(run) if not n.endswith(".tmp")] == [p.name for p in load_run(run).files("history")]
        assert len(load_run(run).files("history")) == 1
    assert cut_short > 4


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def test_readers_while_files_are_merged(tmp_path: Path) -> None:
    """A process writes 200 steps and merges every 4 files; each look sees steps 1 to n once, n at least what was there
    when it began. The doctor, which reads file by file, sees nothing missing or twice."""
    run = tmp_path / "r"
    script = (WRITER + "write(run)").replace("range(1, 41)", "range(1, 201)")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(run), "0"], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        written = looks = 0
        for line in process.stdout:
            written = int(line)
            if written % 2:
                continue
            steps = [step for step, _, _ in rows(run)]
            assert steps == list(range(1, len(steps) + 1)) and len(steps) >= written
            looks += 1
            if written % 40 == 0:
                bad = [f for f in check_run(run) if f.outcome == "fail"]
                assert not bad
        assert process.wait(60) == 0 and written == 200 and looks == 100
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_file_that_goes_between_listing_and_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has listed four files; before it opens the first the writer merges them."""
    writer = RunWriter(tmp_path / "r")
    for step in (1, 2, 3):
        writer.write("history", [row(step)], "train")
    run = load_run(tmp_path / "r")
    files = run.files

    def then_merged(*args: Any) -> list[Path]:
        found = files(*args)
        writer.merge()
        return found

    monkeypatch.setattr(run, "files", then_merged)
    assert run.read("history")["step"].tolist() == [1, 2, 3]
    assert names(tmp_path / "r") == ["00000001-00000003.~1.r0.parquet"]


def test_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r").write("history", [row(1)], "train")
    (tmp_path / "r" / "history" / Part(2, 2, "train", 0).name).symlink_to("nowhere")
    with pytest.raises(DiagError, match="a link to nothing"):
        rows(tmp_path / "r")


def test_the_doctor_names_what_a_killed_writer_left(tmp_path: Path) -> None:
    """Both the merged file and one that it replaced: 4 rows, no duplicate, and a line that says so."""
    writer = RunWriter(tmp_path / "r")
    first = writer.write("history", [row(1)], "train")
    assert first is not None
    kept = first.read_bytes()
    for step in (2, 3, 4):
        writer.write("history", [row(step)], "train")
    first.write_bytes(kept)
    said = {f.name: f.found for f in check_run(tmp_path / "r") if f.outcome != "fail"}
    assert said["history"] == "4 rows in 1 files, steps 1 to 4"
    assert said["leftovers"] == "1 files that a merged one replaced: history/00000001-00000001.train.r0.parquet"


# ---- two writers of one rank, files that are open ----


def test_a_part_that_another_writer_merged_is_written_again_where_it_stands(tmp_path: Path) -> None:
    """Writer a knows of no merged file when b writes and merges 1 to 4; what a writes under one of these names for the
    first time would be hidden by b's merged file, and takes its rows' place there."""
    a = RunWriter(tmp_path / "r")
    a.write("history", [row(9)], "train")
    b = RunWriter(tmp_path / "r", resume_step=9)
    for step in range(1, 5):
        b.write("history", [row(step, 1.0)], "train")
    b.merge()
    a.write("history", [row(2, 5.0)], "train")
    assert sorted(rows(tmp_path / "r")) == [(s, "loss", {2: 5.0, 9: 0.0}.get(s, 1.0)) for s in (1, 2, 3, 4, 9)]


def test_what_is_written_is_written_in_ones_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file gets its name the rank's lock is taken, another rank's is not; one that never comes free is waited
    for, and the row is written all the same."""
    seen: list[Any] = []
    write = merging.write_parquet

    def looked(*args: Any, **kwargs: Any) -> None:
        with FileLock(tmp_path / "r" / ".records.r1.lock", timeout=0), pytest.raises(Timeout):
            FileLock(tmp_path / "r" / ".records.r0.lock").acquire(timeout=0)
        seen.append(args)
        write(*args, **kwargs)

    writer = RunWriter(tmp_path / "r")
    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_parquet", looked)
        writer.write("history", [row(1)], "train")
    assert len(seen) == 1
    monkeypatch.setattr(merging, "PATIENCE", 0.0)
    with FileLock(tmp_path / "r" / ".records.r0.lock"):
        writer.write("history", [row(2)], "train")
    assert [step for step, _, _ in rows(tmp_path / "r")] == [1, 2]


def test_two_processes_write_the_same_steps(tmp_path: Path) -> None:
    """Processes of one launch that opened the writer before they knew their rank: both write steps 1 to 40 and merge
    every 4 files, and each step is there once."""
    run = tmp_path / "r"
    RunWriter(run)
    script = WRITER.replace("RunWriter(run)", "RunWriter(run, resume_step=99)") + "write(run)"
    command, ranks = [sys.executable, "-c", script, str(run), "0"], environment() | {"RANK": "1"}
    writers = [subprocess.Popen(command, env=ranks) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert sorted(rows(run)) == [(s, "loss", float(s)) for s in range(1, 41)]


def test_a_file_that_cannot_be_removed_is_cut_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file that is being read cannot be removed (Windows): steps 3 and 4 are cut from sight by a file without
    rows, step 3 is written anew, and the next writer that can removes what was left."""
    run = tmp_path / "r"
    writer = RunWriter(run)
    for step in (1, 2, 3):
        writer.write("history", [row(step)], "train")

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        RunWriter(run, resume_step=1)
        assert [step for step, _, _ in rows(run)] == [1]
        RunWriter(run, resume_step=0)
        assert rows(run) == []
        writer = RunWriter(run, resume_step=0)
        writer.write("history", [row(3, 7.0)], "train")
        assert rows(run) == [(3, "loss", 7.0)]
    assert len(names(run)) > 3
    writer = RunWriter(run, resume_step=3)
    writer.write("history", [row(4)], "train")
    writer.finish()
    assert rows(run) == [(3, "loss", 7.0), (4, "loss", 0.0)]
    assert listed(run / "history") == visible(run / "history")
