"""The cache: hit and miss, a killed builder, two builders at once, a damaged entry, an unwritable root."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.tasks.sql.cache import build_once, content_key, read_meta

BUILDER = """
import sys, time
from pathlib import Path
from dpo_diag.tasks.sql.cache import build_once
root, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build(folder):
    with open(root / "built.log", "a") as log:
        log.write("x")
    (folder / "half.txt").write_text("half")
    print("building", flush=True)
    time.sleep(seconds)
    (folder / "half.txt").write_text("whole")
    return {"n": 1}
folder, meta, hit = build_once(root, "case", {"a": 1}, build)
print(folder.name, (folder / "half.txt").read_text(), hit, flush=True)
"""


def _start(root, seconds):
    command = [sys.executable, "-c", BUILDER, str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _writer(text, calls):
    def build(folder):
        calls.append(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "file.txt").write_text(text)
        return {"text": text}

    return build


def test_key_is_the_content_not_the_order():
    """The first 16 hex digits of sha256 of {"a":1,"b":[2]}."""
    assert content_key({"b": [2], "a": 1}) == content_key({"a": 1, "b": [2]}) == "0855bfc20eb6cfaa"
    assert content_key({"a": 1, "b": [3]}) != content_key({"a": 1, "b": [2]})


def test_miss_then_hit_then_another_key(tmp_path):
    calls = []
    first = build_once(tmp_path / "new", "case", {"a": 1}, _writer("one", calls))
    again = build_once(tmp_path / "new", "case", {"a": 1}, _writer("never", calls))
    other = build_once(tmp_path / "new", "case", {"a": 2}, _writer("two", calls))
    assert calls == ["one", "two"]
    assert (first[2], again[2], other[2]) == (False, True, False)
    assert first[0] == again[0] != other[0]
    assert (again[0] / "sub" / "file.txt").read_text() == "one"
    assert again[1] == first[1] and again[1]["facts"] == {"text": "one"} and again[1]["determinants"] == {"a": 1}
    assert list(again[1]["files"]) == ["sub/file.txt"]


def test_a_failing_build_leaves_nothing(tmp_path):
    def build(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        build_once(tmp_path, "case", {}, build)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    assert build_once(tmp_path, "case", {}, _writer("fine", []))[2] is False


@pytest.mark.parametrize("damage", ["edit", "remove", "add", "meta"])
def test_a_damaged_entry_is_built_again(tmp_path, damage):
    calls = []
    folder, _, _ = build_once(tmp_path, "case", {}, _writer("good", calls))
    file = folder / "sub" / "file.txt"
    {
        "edit": lambda: file.write_text("goof"),
        "remove": file.unlink,
        "add": lambda: (folder / "more").write_text("?"),
        "meta": lambda: (folder / "meta.json").write_text("{"),
    }[damage]()
    assert read_meta(folder) is None
    again, _, hit = build_once(tmp_path, "case", {}, _writer("good", calls))
    assert (again, hit, calls) == (folder, False, ["good", "good"])
    assert file.read_text() == "good" and not (folder / "more").exists()


def test_a_killed_builder_leaves_nothing_that_counts(tmp_path):
    killed = _start(tmp_path, 60)
    assert killed.stdout.readline() == "building\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    assert [p for p in tmp_path.iterdir() if p.is_dir() and not p.name.startswith(".")] == []
    assert len(list(tmp_path.glob(".case-*.tmp-*"))) == 1
    started = time.monotonic()
    folder, _, hit = build_once(tmp_path, "case", {"a": 1}, _writer("after", []))
    assert hit is False and (folder / "sub" / "file.txt").read_text() == "after"
    assert time.monotonic() - started < 10  # the dead job's lock is free
    assert list(tmp_path.glob(".case-*.tmp-*")) == []


def test_jobs_side_by_side_pay_once(tmp_path):
    jobs = [_start(tmp_path, 1.0) for _ in range(3)]
    lines = [job.communicate(timeout=60)[0].splitlines()[-1] for job in jobs]
    key = content_key({"a": 1})
    assert sorted(lines) == [f"case-{key} whole False", f"case-{key} whole True", f"case-{key} whole True"]
    assert (tmp_path / "built.log").read_text() == "x"


def test_waiting_ends_with_one_line(tmp_path):
    holder = _start(tmp_path, 60)
    try:
        assert holder.stdout.readline() == "building\n"
        with pytest.raises(DiagError, match="another job holds the lock"):
            build_once(tmp_path, "case", {"a": 1}, _writer("x", []), timeout=0.2)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_root_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiagError, match="cache folder cannot be written"):
        build_once(tmp_path / "file", "case", {}, _writer("x", []))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_root(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DiagError, match="cache folder cannot be written"):
        build_once(tmp_path / "new", "case", {}, _writer("x", []))
