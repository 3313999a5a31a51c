"""One reviewer's way through the items, without a browser: blindness, staleness, undo, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records import load_run
from dpo_diag.review import judgements
from dpo_diag.review.behaviours import load_behaviours
from dpo_diag.review.items import choose_items
from dpo_diag.review.session import Session
from tests.review.builders import HOSTILE


def session(run_path: Path, n: int = 5, reviewer: str = "ann", behaviours: tuple[str, ...] = ()) -> Session:
    run = load_run(run_path)
    return Session(run, choose_items(run, n=n), reviewer, behaviours)


def text_of(pieces: list[dict[str, Any]]) -> str:
    return "".join(p["text"] for p in pieces)


def test_sides_are_translated_to_checkpoints(run_path: Path) -> None:
    s = session(run_path, n=20)
    for item in s.items:
        state = s.state()
        a_side = "left" if item.left("ann") == "a" else "right"
        if "Answer" in item.b_text:
            assert text_of(state["item"][a_side]) == item.a_text
        s.judge({"item": state["item"]["id"], "verdict": a_side, "marks": {}, "note": ""})
    said = judgements.read(run_path).effective()
    assert [j.outcome for j in said] == ["a"] * 20
    assert {j.left for j in said} == {"a", "b"}


def test_nothing_shown_before_the_last_verdict_names_a_checkpoint(run_path: Path) -> None:
    s = session(run_path)
    for _ in s.items:
        state = s.state()
        assert "summary" not in state
        shown = json.dumps(state)
        assert not any(word in shown for word in ("policy", '"ref"', "step 40", '"step"', '"a"', '"b"'))
        s.judge({"item": state["item"]["id"], "verdict": "tie"})
    assert s.state()["item"] is None
    assert s.state()["summary"]["comparisons"][0]["b"] == "step 40"


def test_a_verdict_about_another_item_is_not_recorded(run_path: Path) -> None:
    s = session(run_path)
    first = s.state()["item"]["id"]
    after = s.judge({"item": first, "verdict": "left"})
    again = s.judge({"item": first, "verdict": "right"})
    assert "nothing was recorded" in again["notice"]
    assert again["item"]["id"] == after["item"]["id"] != first
    assert "Unknown verdict" in s.judge({"item": after["item"]["id"], "verdict": "middle"})["notice"]
    assert len(judgements.read(run_path).rows) == 1


def test_marks_note_and_undo(run_path: Path) -> None:
    s = session(run_path, behaviours=("structure", "careful"))
    state = s.state()
    assert state["behaviours"] == [{"key": "3", "name": "structure"}, {"key": "4", "name": "careful"}]
    item = s.items[0]
    left = item.left("ann")
    s.judge({"item": item.id, "verdict": "right", "marks": {"0": ["left"], "1": ["left", "right"], "9": ["left"]},
             "note": "hm", "seconds": 2.04})  # fmt: skip
    (row,) = judgements.read(run_path).rows
    assert row.behaviours == {"structure": [left], "careful": ["a", "b"]}
    assert (row.asked, row.note, row.seconds) == (["structure", "careful"], "hm", 2.0)
    back = s.undo()
    assert (back["done"], back["item"]["id"], back["item"]["note"]) == (0, item.id, "hm")
    assert {k: sorted(v) for k, v in back["item"]["marks"].items()} == {"0": ["left"], "1": ["left", "right"]}
    assert s.undo()["notice"] == "Nothing to undo."
    assert [j.outcome for j in judgements.read(run_path).rows][-1] == "undo"


def test_a_session_resumes_and_two_reviewers_do_not_meet(run_path: Path) -> None:
    s = session(run_path)
    for verdict in ("left", "skip"):
        s.judge({"item": s.state()["item"]["id"], "verdict": verdict})
    again = session(run_path).state()
    assert (again["done"], again["skipped"], again["item"]["id"]) == (2, 1, s.items[2].id)
    assert session(run_path, reviewer="ben").state()["done"] == 0
    reopened = session(run_path).reopen()
    assert (reopened["done"], reopened["item"]["id"]) == (1, s.items[1].id)
    assert session(run_path).reopen()["notice"] == "Nothing was skipped."


def test_hostile_text_is_shown_by_its_code_points(run_path: Path) -> None:
    run = load_run(run_path)
    items = [i for i in choose_items(run, n=24) if i.b_text == HOSTILE]
    item = Session(run, items, "ann").state()["item"]
    shown = text_of(item["left"]) + text_of(item["right"])
    assert "<U+202E>" in shown and "<U+200B>" in shown and "<U+001B>" in shown
    assert not set(shown) & {"\u202e", "\u200b", "\x1b"}


def test_a_full_disk_is_named_and_the_item_stays(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = session(run_path)

    def fail(*_: object) -> None:
        raise DiagError("a judgement could not be saved", got="No space left on device")

    monkeypatch.setattr(judgements, "append", fail)
    state = s.judge({"item": s.items[0].id, "verdict": "left"})
    assert state["notice"].startswith("NOT SAVED: a judgement could not be saved")
    assert (state["done"], state["item"]["id"]) == (0, s.items[0].id)


def test_the_list_of_behaviours_is_kept_with_the_run(run_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("# what we look for\nstructure\n\n  careful when unsure \n", encoding="utf-8")
    assert load_behaviours(run_path) == []
    assert load_behaviours(run_path, file) == ["structure", "careful when unsure"]
    assert load_behaviours(run_path) == ["structure", "careful when unsure"]
    file.write_text("x\nx\n")
    with pytest.raises(DiagError, match="duplicate behaviour"):
        load_behaviours(run_path, file)
    file.write_text("\n".join(f"b{i}" for i in range(30)))
    with pytest.raises(DiagError, match="too many behaviours"):
        load_behaviours(run_path, file)
    with pytest.raises(DiagError, match="no such file"):
        load_behaviours(run_path, tmp_path / "absent.txt")
