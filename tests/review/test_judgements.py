"""Judgements survive: torn lines, kills, two processes; undo is a line; names cannot leave the folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.errors import DiagError
from dpo_diag.records import load_run
from dpo_diag.review import judgements
from dpo_diag.review.items import choose_items
from dpo_diag.review.judgements import sitting
from tests.records.test_run_lock import HOLDER
from tests.review.builders import judgement, make_run


def test_what_is_written_is_read_and_the_last_word_counts(run_path: Path) -> None:
    one, two, three = choose_items(load_run(run_path), n=3)
    rows = [
        judgement(one, "a", behaviours={"structure": ["a", "b"]}, asked=["structure"], note="schön 好", seconds=1.5),
        judgement(two, "tie"),
        judgement(one, "b"),
        judgement(three, "skip"),
        judgement(two, "undo"),
    ]
    for row in rows:
        judgements.append(run_path, row)
    read = judgements.read(run_path)
    assert read.rows == rows
    assert read.damaged == []
    assert [(j.item, j.outcome) for j in read.effective()] == [(one.id, "b"), (three.id, "skip")]


def test_a_torn_last_line_is_reported_and_the_next_write_starts_a_new_one(run_path: Path) -> None:
    one, two = choose_items(load_run(run_path), n=2)
    judgements.append(run_path, judgement(one, "a"))
    path = judgements.file_of(run_path, "ann")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert [j.item for j in judgements.read(run_path).rows] == [one.id]
    assert judgements.read(run_path).damaged == [("ann.jsonl", 2, "torn: the process was killed while writing it")]
    judgements.append(run_path, judgement(two, "b"))
    assert [j.item for j in judgements.read(run_path).rows] == [one.id, two.id]
    assert [d[:2] for d in judgements.read(run_path).damaged] == [("ann.jsonl", 2)]


@given(cut=st.integers(0, 2_000))
@settings(max_examples=40, deadline=None)
def test_cut_anywhere_every_whole_line_is_kept(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut")
    items = choose_items(load_run(_run(tmp_path_factory)), n=3)
    for item in items:
        judgements.append(path, judgement(item, "a"))
    file = judgements.file_of(path, "ann")
    content = file.read_bytes()[:cut]
    file.write_bytes(content)
    read = judgements.read(path)
    # A line is whole with all its bytes, whether or not its newline was written.
    whole = sum(1 for line in content.split(b"\n") if re.search(rb'"crc32": "[0-9a-f]{8}"}$', line))
    assert len(read.rows) == whole
    assert len(read.damaged) == (1 if content and not content.endswith((b"\n", b'"}')) else 0)


_kept: list[Path] = []


def _run(factory: pytest.TempPathFactory) -> Path:
    if not _kept:
        _kept.append(make_run(factory.mktemp("source") / "run"))
    return _kept[0]


@pytest.mark.parametrize(
    "line",
    [b"[]", b"{}", b"\xff\xfe", b'{"v": 2}', b'{"v": 1, "outcome": "c", "kind": "person"}', b"null", b"7", b'"x"'],
)
def test_a_line_that_does_not_fit_is_named_not_fatal(run_path: Path, line: bytes) -> None:
    (item,) = choose_items(load_run(run_path), n=1)
    path = judgements.file_of(run_path, "ann")
    path.parent.mkdir()
    path.write_bytes(line + b"\n")
    judgements.append(run_path, judgement(item, "a"))
    read = judgements.read(run_path)
    assert len(read.rows) == 1
    assert [d[:2] for d in read.damaged] == [("ann.jsonl", 1)]


def test_fields_of_a_newer_minor_writer_are_passed_over(run_path: Path) -> None:
    (item,) = choose_items(load_run(run_path), n=1)
    row = json.loads(judgement(item, "a").to_line()) | {"mood": "fine"}
    del row["crc32"]  # the newer writer's own comes last
    path = judgements.file_of(run_path, "ann")
    path.parent.mkdir()
    path.write_text(json.dumps(row) + "\n")
    assert len(judgements.read(run_path).rows) == 1


def test_two_processes_of_one_reviewer_do_not_mix_their_lines(run_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dpo_diag.records import load_run\n"
        "from dpo_diag.review import judgements\n"
        "from dpo_diag.review.items import choose_items\n"
        "from tests.review.builders import judgement\n"
        "run = Path(sys.argv[1])\n"
        "for item in choose_items(load_run(run), n=24):\n"
        "    for _ in range(5): judgements.append(run, judgement(item, 'a', note=sys.argv[2] * 3000))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(run_path), x]) for x in "xy"]
    assert [w.wait(120) for w in writers] == [0, 0]
    read = judgements.read(run_path)
    assert read.damaged == []
    assert len(read.rows) == 240
    assert {j.note for j in read.rows} == {"x" * 3000, "y" * 3000}


@pytest.mark.parametrize("name", ["", "../ann", "a/b", ".hidden", "x" * 65, "ann\n", "ann ", "a\x00b", "ann."])
def test_a_name_that_is_no_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DiagError, match="not a reviewer's name"):
        judgements.file_of(tmp_path, name)


def test_names_of_people_are_accepted(tmp_path: Path) -> None:
    for name in ("ann", "Åsa Öberg", "李雷", "a.b-c_d@example.org"):
        assert judgements.file_of(tmp_path, name) == tmp_path / "review" / f"{name}.jsonl"


def test_names_that_share_a_file_are_kept_apart(run_path: Path) -> None:
    (item,) = choose_items(load_run(run_path), n=1)
    judgements.append(run_path, judgement(item, "a", "judge_m"))
    judgements.append(run_path, judgement(item, "b", "judge:m", "judge"))
    assert [j.outcome for j in judgements.read(run_path, "judge_m").rows] == ["a"]
    assert [j.outcome for j in judgements.read(run_path, "judge:m").rows] == ["b"]
    assert len(judgements.read(run_path).effective()) == 2


def test_a_folder_that_cannot_be_written_is_one_clear_line(run_path: Path) -> None:
    (run_path / "review").write_text("a file where the folder should be")
    (item,) = choose_items(load_run(run_path), n=1)
    with pytest.raises(DiagError, match="a judgement could not be saved"):
        judgements.append(run_path, judgement(item, "a"))


def test_one_reviewer_has_one_session_and_another_has_her_own(tmp_path: Path) -> None:
    """A second process of the same reviewer is refused by name; nothing of the session stays behind."""
    holder = HOLDER.replace("hold(sys.argv[1])", "a = sitting(sys.argv[1], 'Ann 1.0'); a.__enter__()")
    holder = holder.replace("records.run_lock import hold", "review.judgements import sitting")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        said = f"Ann 1.0 reviews this run already; .*process {other.pid}"
        with pytest.raises(DiagError, match=said), sitting(tmp_path, "Ann 1.0"):
            pass
        with sitting(tmp_path, "Bea"):
            pass
        other.kill()
    with sitting(tmp_path, "Ann 1.0"):
        assert (tmp_path / "review" / ".Ann 1.0").is_dir()
    assert list((tmp_path / "review").iterdir()) == []
