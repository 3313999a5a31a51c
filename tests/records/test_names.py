"""Names that become folders and files: whatever they hold, nothing lands outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter, load_run
from dpo_diag.records.names import check_name, shortened

BAD = ["../../x", "..", "a/../b", "/etc/x", "a//b", "", " ", ".", "~root", "C:x", "a\nb", "a\x1b[2J", "a\x00b",
       "x" * 300, "\u4e2d" * 41, "a\\..\\b", "a\u202eb", "a\u2028b", "\ud800"]  # fmt: skip


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_name_that_leads_elsewhere_or_cannot_be_seen_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(DiagError, match="not a name for a folder; in name; got") as raised:
        check_name(name, "name")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 400
    with pytest.raises(DiagError, match=r"; hint: output_root=FOLDER$"):
        check_name(name, "name", "output_root=FOLDER")


@pytest.mark.parametrize("name", ["run", "vergleich β", "a/b", "数据", "x" * 120, "a..b", "-x", "100%$HOME", "it's"])
def test_other_names_are_taken_as_they_are(name: str) -> None:
    assert check_name(name, "name") == name


def test_a_long_split_is_a_short_file_and_another_one_for_another_split(tmp_path: Path) -> None:
    """Two splits of 300 letters that differ in the last: two files, whose rows say their whole names."""
    writer = RunWriter(tmp_path / "r")
    splits = ["../" * 99 + end for end in "ab"]
    for split in splits:
        writer.write("history", [{"step": 1, "split": split, "name": "loss", "value": 1.0}], split)
    writer.finish()
    names = [p.name for p in (tmp_path / "r" / "history").iterdir()]
    assert len(names) == 2 and all(len(name.encode()) < 200 for name in names)
    assert set(load_run(tmp_path / "r").history["split"]) == set(splits)
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_shortened_keeps_whole_letters() -> None:
    """20 bytes: 7 of text, in which the third letter of 3 bytes does not fit, a dash and 12 of the hash."""
    assert shortened("中中中中中中中", 20)[:3] == "中中-" and len(shortened("中" * 7, 20)) == 15
