"""Every command's output against its snapshot; a difference is a defect or a line in the CHANGELOG."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.cases import CASES, compared
from tests.golden.snapshot import FOLDER, Snapshot, differences, explanation, snapshot


@pytest.mark.parametrize("name", CASES)
def test_output_equals_its_snapshot(name: str, tmp_path: Path) -> None:
    _, found = compared(name, tmp_path)
    assert not found, explanation(name, found)


def test_every_snapshot_belongs_to_a_case() -> None:
    assert {p.name.split(".")[0] for p in FOLDER.iterdir()} == set(CASES)


def test_a_changed_number_a_changed_sentence_and_an_absent_key_are_named_by_path() -> None:
    """1.0 -> 1.00001 lies at the tolerance of 1e-5, 2.0 -> 2.001 beyond it; a cut list of 9 keeps rows 0-3, 7 and 8."""
    old = {"a": {"x": 1.0, "y": 2.0, "gone": None}, "rows": list(range(9)), "why": "it fell far"}
    new = {"a": {"x": 1.00001, "y": 2.001}, "rows": [*range(8), 80], "why": "it fell"}
    assert snapshot(old).numbers["rows"] == {"length": 9, "first": [0, 1, 2, 3], "last": [7, 8]}
    assert differences(snapshot(old), snapshot(new)) == [
        "a.y: 2.0 -> 2.001", "a.gone: null -> absent", "rows.last[1]: 8 -> 80",
        "why:\n      it fell far\n   -> it fell",
    ]  # fmt: skip
    assert differences(Snapshot({"flag": True}, {}), Snapshot({"flag": 1}, {})) == ["flag: true -> 1"]
