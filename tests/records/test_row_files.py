"""Rows of a file: every format gives the same rows; what cannot be read names its line or the file."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.errors import DiagError
from dpo_diag.records.row_files import BadRow, read_rows, readable_rows
from dpo_diag.records.text_files import Skipped, lines

ROWS = [{"prompt": f"p{i}", "chosen": f"c, é\n{i}", "rejected": f'r "{i}"'} for i in range(3)]


def _jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _json(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")


def _csv(path: Path, rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def _parquet(path: Path, rows: list[Any]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Any]], None]] = {
    "a.jsonl": _jsonl,
    "a.json": _json,
    "lines.json": _jsonl,
    "a.csv": _csv,
    "a.tsv": _csv,
    "a.parquet": _parquet,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    if zipped:
        plain, path = path, tmp_path / (name + ".gz")
        path.write_bytes(gzip.compress(plain.read_bytes()))
    rows = list(read_rows(path))
    assert [row for _, row in rows] == ROWS
    # The number is the line where there are lines: a CSV's header is one, and each row here holds a line break.
    assert [number for number, _ in rows] == ([3, 5, 7] if "sv" in name else [1, 2, 3])


def test_one_row_and_a_wrapped_array(tmp_path: Path) -> None:
    one, wrapped = tmp_path / "one.json", tmp_path / "wrapped.json"
    one.write_text(json.dumps(ROWS[0]))
    wrapped.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert list(read_rows(one)) == [(1, ROWS[0])]
    assert [number for number, _ in read_rows(wrapped)] == [1, 2, 3]
    messages = {"chosen": [{"role": "user", "content": "x"}], "rejected": [{"role": "user", "content": "y"}]}
    one.write_text(json.dumps(messages, indent=1))
    assert list(read_rows(one)) == [(1, messages)]


COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


@pytest.mark.parametrize(
    "document",
    [
        {"data": ROWS},
        {"version": 2, "examples": ROWS},
        {"features": [], "rows": [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(ROWS)]},
        COLUMNS,
        {name: {str(i): value for i, value in enumerate(values)} for name, values in COLUMNS.items()},
        {str(i): row for i, row in enumerate(ROWS)},
        {"columns": list(COLUMNS), "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_in_any_one_document(tmp_path: Path, document: dict[str, Any], indent: int | None) -> None:
    """A wrapper, the hub viewer's answer, columns as lists or as pandas writes them, its orients index and split."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
    assert list(read_rows(path)) == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize("orient", ["columns", "index", "split", "records", "table", "values"])
@pytest.mark.parametrize("ids", [None, ["a", "b", "c"]])
def test_every_orient_of_pandas(orient: Any, ids: list[str] | None, tmp_path: Path) -> None:
    """Rows whatever the index is called; values holds no names, and columns by ids look like one row of objects."""
    path = tmp_path / "a.json"
    pd.DataFrame(ROWS, index=ids).to_json(path, orient=orient)
    if orient == "values":
        with pytest.raises(DiagError, match=r"without the names of its columns; in .*orient=.records"):
            list(read_rows(path))
    elif orient == "columns" and ids:
        assert list(read_rows(path)) == [(1, {k: dict(zip(ids, v, strict=True)) for k, v in COLUMNS.items()})]
    else:
        assert list(read_rows(path)) == list(enumerate(ROWS, start=1))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_objects_over_several_lines_one_after_the_other(tmp_path: Path, name: str, end: str) -> None:
    """Numbered by the line on which each begins: five lines an object, and a blank one between them."""
    path = tmp_path / name
    text = "\n\n".join(json.dumps(row, indent=2) for row in ROWS)
    path.write_bytes(text.replace("\n", end).encode())
    assert list(read_rows(path)) == [(1, ROWS[0]), (7, ROWS[1]), (13, ROWS[2])]


def test_a_broken_object_among_pretty_ones_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first, second = (json.dumps(row, indent=2) for row in ROWS[:2])
    path.write_text(f'{first}\n{{"prompt": "p", "chosen"\n{second}')
    rows = list(read_rows(path))
    assert [number for number, _ in rows] == [1, 6, 7] and rows[0][1] == ROWS[0] and rows[2][1] == ROWS[1]
    assert isinstance(rows[1][1], BadRow)


def test_bad_lines_keep_their_line_number_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(ROWS[0]).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n{broken\n[1]\n\xff\xfe\n" + b"[" * 100_000 + b"\n" + good)
    rows = list(read_rows(path))
    assert [number for number, _ in rows] == [1, 3, 4, 5, 6, 7]
    assert rows[0][1] == rows[-1][1] == ROWS[0]
    bad = [row for _, row in rows[1:-1]]
    assert all(isinstance(row, BadRow) for row in bad)
    assert [row.why for row in bad] == ["undecodable line", "wrong type", "undecodable line", "undecodable line"]  # type: ignore[union-attr]
    assert "not UTF-8 at byte 0" in bad[2].detail  # type: ignore[union-attr]


def test_csv_rows_with_the_wrong_number_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected\np,c,r\np,c\np,c,r,x\n")
    rows = [row for _, row in read_rows(path)]
    assert [number for number, _ in read_rows(path)] == [2, 3, 4]
    assert rows[0] == {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert [row.detail for row in rows[1:]] == ["2 cells, expected 3", "4 cells, expected 3"]  # type: ignore[union-attr]


def test_a_csv_cell_beyond_the_library_s_own_limit(tmp_path: Path) -> None:
    path, before = tmp_path / "a.csv", csv.field_size_limit()
    _csv(path, [{"prompt": "p" * 200_000, "chosen": "c", "rejected": "r"}])
    ((_, row),) = read_rows(path)
    assert len(row["prompt"]) == 200_000  # type: ignore[index]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[{]", "the file is not JSON"),
        ("a.json", b"3", "the file holds no rows"),
        ("a.json", b"[\xff]", "the file is not UTF-8"),
        ("a.json", b'{"a": [{"chosen": 1}], "b": [{"chosen": 1}]}', "several arrays of rows; in"),
        ("a.jsonl.gz", b"plain", "the compressed file is damaged"),
        ("a.jsonl.gz", gzip.compress(b"x" * 10_000, mtime=0)[:-20], "the compressed file is damaged"),
        ("a.parquet", b"PAR1 and no more", "the Parquet file cannot be read"),
        ("a.csv", b"prompt\n\xff\n", "the file is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DiagError, match=message) as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_file_that_is_absent_is_an_error_before_the_first_row(tmp_path: Path) -> None:
    with pytest.raises(DiagError, match="cannot open the file"):
        read_rows(tmp_path / "absent.jsonl")


def test_a_list_for_the_damage_keeps_the_rows_before_it(tmp_path: Path) -> None:
    """1,000 different rows, gzipped and cut: the first ones are read, the rest is one entry without a line."""
    path, skipped = tmp_path / "a.jsonl.gz", Skipped()
    _jsonl(tmp_path / "a.jsonl", [{"i": i} for i in range(1000)])
    path.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes())[:-200])
    rows = list(readable_rows(path, skipped))
    assert rows[:2] == [(1, {"i": 0}), (2, {"i": 1})]
    assert len(rows) < 1000
    assert skipped.listed[0] == {"line": None, "why": "compressed data end early: what came before the end was read"}


def test_what_cannot_be_read_is_listed_with_its_line_and_counted_by_reason(tmp_path: Path) -> None:
    path, skipped = tmp_path / "a.jsonl", Skipped()
    path.write_text('{"a": 1}\n{broken\n[1]\n{worse\n')
    assert list(readable_rows(path, skipped)) == [(1, {"a": 1})]
    assert [row["line"] for row in skipped.listed] == [2, 3, 4]
    assert skipped.reasons == {"not JSON": 2, "the row is list, expected an object": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-16-le"])
def test_other_encodings_are_read_as_utf_8(tmp_path: Path, encoding: str) -> None:
    """UTF-16 and 32 by their mark (big-endian here with one written by hand), PowerShell's UTF-16 without one."""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "a.txt").write_bytes((mark + "step,é\r\n1,2\n").encode(encoding))
    assert [text.decode() for _, text in lines(tmp_path / "a.txt")] == ["step,é", "1,2"]


def test_the_header_decides_the_delimiter_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("step;loss, mean;epoch\n1;0.5;2\n")
    assert list(read_rows(tmp_path / "table")) == [(2, {"step": "1", "loss, mean": "0.5", "epoch": "2"})]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3), min_size=1, max_size=5))
def test_json_and_jsonl_agree_on_any_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    _jsonl(folder / "a.jsonl", rows)
    _json(folder / "a.json", rows)
    assert list(read_rows(folder / "a.jsonl")) == list(read_rows(folder / "a.json")) == list(enumerate(rows, 1))
