"""Sources that would take all time or memory: a bound that says so, or work that grows with the source alone."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sqlite3
import zipfile

import pandas as pd
import pytest

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.importers import archive, bars, import_path
from dpo_diag.importers.literal import parse_row
from dpo_diag.importers.log_format import Head
from dpo_diag.outputs.formats import fenced, has_fence, is_sql, structure
from dpo_diag.records import json_documents, text_files

ROW = b'{"step": 1, "loss": 0.5}\n'


@pytest.mark.parametrize(("ending", "packed"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_file_that_unpacks_to_far_more_is_read_up_to_there(tmp_path, monkeypatch, ending, packed):
    """4 MB of blanks pack to a few KB; a bound of 1 MB and 100 times ends it, and the row before them is kept."""
    monkeypatch.setattr(text_files, "UNPACKED_FREELY", 1 << 20)
    (tmp_path / f"log.jsonl.{ending}").write_bytes(packed(ROW + b" " * (4 << 20)))
    told = import_path(tmp_path / f"log.jsonl.{ending}", tmp_path / "run")
    assert (told["read"], [row["why"] for row in told["skipped"]]) == (
        1, ["it unpacks to more than 100 times its size: if that is right, unpack it first"],
    )  # fmt: skip


def test_an_archive_member_that_unpacks_to_far_more_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "UNPACKED_FREELY", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("log.jsonl", ROW)
        made.writestr("other.jsonl", b" " * (4 << 20))
    told = import_path(tmp_path / "a.zip", tmp_path / "run")
    assert told["read"] == 1
    assert told["skipped"][0]["file"] == "other.jsonl"


def test_a_long_line_comes_once_and_whole(tmp_path, monkeypatch):
    """Pieces of 1 MiB: a line of 3 MiB, its end on a piece's edge, and the short one behind it."""
    (tmp_path / "a").write_bytes(b"x" * (3 << 20) + b"\r\n" + b"y")
    assert [(n, len(line)) for n, line in text_files.lines(tmp_path / "a")] == [(1, 3 << 20), (2, 1)]
    monkeypatch.setattr(text_files, "MAX_LINE", 2 << 20)
    skipped = text_files.Skipped()
    assert [*text_files.lines(tmp_path / "a", skipped)] == [(2, b"y")]
    assert skipped.listed == [{"line": 1, "why": "a line longer than 64 MiB"}]


@pytest.mark.parametrize(
    "view",
    [
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS step, '{}' AS metrics FROM n",
        "SELECT a.* FROM kept a, kept b, kept c",
    ],
)
def test_a_view_in_a_trackers_database_does_not_run(tmp_path, view):
    connection = sqlite3.connect(tmp_path / "p.db")
    connection.execute("CREATE TABLE kept (step INTEGER, metrics TEXT)")
    connection.execute(f"CREATE VIEW metrics AS {view}")
    connection.close()
    with pytest.raises(DiagError, match=r"the database cannot be read.*(not authorized|prohibited)"):
        import_path(tmp_path / "p.db", tmp_path / "run")


def test_a_query_without_end_is_stopped(tmp_path, monkeypatch):
    """Ten million steps are allowed to a small file; here a hundred thousand, of which 10,000 rows take more."""
    from dpo_diag.importers import databases

    monkeypatch.setattr(databases, "_STEPS", 0)
    monkeypatch.setattr(databases, "_STEPS_A_BYTE", 0)
    connection = sqlite3.connect(tmp_path / "p.db")
    connection.execute("CREATE TABLE metrics (step INTEGER, metrics TEXT)")
    connection.executemany("INSERT INTO metrics VALUES (?, '{}')", [(n,) for n in range(30_000)])
    connection.commit()
    connection.close()
    with pytest.raises(DiagError, match="interrupted"):
        import_path(tmp_path / "p.db", tmp_path / "run")


def test_rows_that_each_bring_a_new_key_are_joined_once_a_metric(tmp_path, monkeypatch):
    """60 rows, each with a key of its own: loss is made from 60 blocks in one frame, not in 60."""
    log = [{"step": n, "loss": n / 100, f"k{n}": 1.0} for n in range(1, 61)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    made = []
    begin = pd.DataFrame.__init__
    monkeypatch.setattr(pd.DataFrame, "__init__", lambda *a, **k: made.append(1) or begin(*a, **k))
    import_path(tmp_path / "log.jsonl", tmp_path / "run")
    monkeypatch.undo()
    history = load_run(tmp_path / "run").history
    assert [*history[history["name"] == "loss"]["value"]] == [n / 100 for n in range(1, 61)]
    assert [*history[history["name"] == "k7"]["step"]] == [7]
    assert len(made) < 1000, len(made)


def test_a_row_of_thousands_of_columns_is_one(tmp_path):
    """Here fewer of longer names: 80 KB a row, longer than the 64 KiB by which a format is known. It was read as text,
    which has no such rows. A row without end is still none."""
    row = {"step": 1, "loss": 0.5, **{f"{'name' * 40}/{i}": 0.5 for i in range(470)}}
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row | {"step": step}) for step in (1, 2)))
    assert Head(tmp_path / "log.jsonl").row == row
    told = import_path(tmp_path / "log.jsonl", tmp_path / "run")
    assert (told["read"], len(load_run(tmp_path / "run").history)) == (2, 2 * 471)
    (tmp_path / "endless").write_bytes(b'{"step": ' + b" " * (5 << 20))
    assert len(Head(tmp_path / "endless").data) == 4 << 20 and Head(tmp_path / "endless").row is None


def test_a_broken_document_is_searched_for_rows_a_few_times_at_most():
    """3,000 objects begin in one another, each cut off: each search reads the text to its end; 4 such have an end."""
    text = '{"a": [' * 90 + "1," * 20_000
    assert len([*json_documents.values_in(text)]) < 10


def test_the_out_folder_may_be_a_file(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(ROW)
    (tmp_path / "taken").write_text("")
    with pytest.raises(DiagError, match="not a folder"):
        import_path(tmp_path / "log.jsonl", tmp_path / "taken")


@pytest.mark.timeout(20)
def test_texts_that_made_expressions_backtrack_are_read_in_no_time():
    """Each took between a second and a minute."""
    assert parse_row(b"{'loss': " + b"a.b" * 20_000 + b"}") is None
    assert parse_row(b"{'loss': tensor(0.25, device='cuda:0'), 'n': np.float64(2.0)}") == {"loss": 0.25, "n": 2.0}
    assert [*bars.counters((b" " * 400 + b"1/2 [") * 200, 0, 100_000)] == [(1, 2)] * 200
    assert [*bars.counters(b"Map:  50%|##   | 1/2 [", 0, 100)] == []
    assert [*bars.counters(b"Train:  50%|##   | 1/2 [", 0, 100)] == [(1, 2)]
    assert fenced("a\n```py\nx\n\ny\n```  \n~~~\nz\n~~~\n```\nopen") == ["x\n\ny\n", "z\n"]
    assert not has_fence("```a\n" * 4_000)
    assert structure("`" * 19_999) == 0
    assert not is_sql("select " + "/*\0" * 6_000)
