"""A data set of pairs: bad rows are counted and listed, the fingerprint is of content, the split does not leak."""

from __future__ import annotations

import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.data.hub import read_hub
from dpo_diag.data.pairs import collect, read_pairs, text_rows, to_dataset
from dpo_diag.data.splits import rank, split_pairs, without_prompts_of
from dpo_diag.errors import DiagError
from dpo_diag.records import make_pair_id
from dpo_diag.rows.form import How
from dpo_diag.rows.pair import prompt_key


def _row(i: int, prompt: str | None = None) -> dict[str, str]:
    return {"prompt": prompt or f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}é"}


def _write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_carry_their_id_their_number_and_their_bytes(tmp_path: Path) -> None:
    pairs = read_pairs(_write(tmp_path / "a.jsonl", [_row(0), _row(1)]), How("trl"))
    assert pairs.rows[1] == {
        "row": 2, "pair_id": make_pair_id("p1", "c1", "r1é"), "prompt": "p1", "chosen": "c1", "rejected": "r1é",
        "chosen_bytes": 2, "rejected_bytes": 4,
    }  # fmt: skip
    assert (len(pairs), pairs.n_read, pairs.n_dropped, pairs.kind, len(pairs.issues)) == (2, 2, 0, "text", 0)


def test_every_bad_row_is_listed_with_its_reason(tmp_path: Path) -> None:
    rows = [
        _row(0),
        {"prompt": "p", "chosen": "c"},
        _row(1) | {"chosen": ""},
        _row(2) | {"rejected": "c2"},
        _row(0),
        {"prompt": "p0", "chosen": "r0é", "rejected": "c0"},
        {"prompt": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "b"},
        _row(3) | {"prompt": 7},
    ]
    path = _write(tmp_path / "a.jsonl", rows)
    with path.open("a") as file:
        file.write("{no json\n")
    pairs = read_pairs(path, How("trl"))
    listed = [(i.row, i.why, i.dropped) for i in pairs.issues.itertuples()]
    assert listed == [
        (2, "missing field rejected", True),
        (3, "empty response: chosen", True),
        (4, "chosen equals rejected", True),
        (5, "duplicated pair", True),
        (6, "contradicts another row", False),
        (7, "messages in a set of text", True),
        (8, "wrong type", True),
        (9, "undecodable line", True),
    ]
    assert pairs.issues["detail"].iloc[3] == "the same as row 1"
    assert (pairs.n_read, len(pairs), pairs.n_dropped) == (9, 2, 7)
    assert pairs.summary()["dropped"] == {
        "missing field rejected": 1, "empty response: chosen": 1, "chosen equals rejected": 1, "duplicated pair": 1,
        "messages in a set of text": 1, "wrong type": 1, "undecodable line": 1,
    }  # fmt: skip
    assert pairs.summary()["noted"] == {"contradicts another row": 1}
    assert pairs.summary()["bad_share"] == 7 / 9


def test_too_many_bad_rows_stop_before_training(tmp_path: Path) -> None:
    """2 of 20 rows are 10 %: borne at 0.1, not at 0.09."""
    rows: list[Any] = [_row(i) for i in range(18)] + [{"prompt": "p"}, {"prompt": "q", "chosen": "", "rejected": "r"}]
    pairs = read_pairs(_write(tmp_path / "a.jsonl", rows), How("trl"))
    assert pairs.require(0.1) is pairs
    with pytest.raises(DiagError, match=r"too many bad rows.*2 of 20 rows.*missing field chosen.*row 19") as caught:
        pairs.require(0.09)
    assert "\n" not in str(caught.value)
    with pytest.raises(DiagError, match="no usable preference pair"):
        read_pairs(tmp_path / "a.jsonl", How("sharegpt")).require(1.0)
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(DiagError, match="no preference pairs"):
        read_pairs(tmp_path / "b.json").require()


def test_reading_can_be_limited_and_bad_files_are_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", [_row(i) for i in range(5)])
    assert [row["prompt"] for row in read_pairs(path, limit=2).rows] == ["p0", "p1"]
    with pytest.raises(DiagError, match="unknown row form"):
        read_pairs(path, How("yaml"))
    with pytest.raises(DiagError, match="no such data file"):
        read_pairs(tmp_path / "absent.jsonl")
    with pytest.raises(DiagError, match=r"is a folder.*a\.jsonl"):
        read_pairs(tmp_path)
    for name, content, message in (("a.txt", "x", "got .txt"), ("a", "x", "got no suffix"), ("b.csv", "", "is empty")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DiagError, match=message):
            read_pairs(tmp_path / name)


def test_the_fingerprint_is_of_the_pairs_not_of_the_file(tmp_path: Path) -> None:
    rows = [_row(i) for i in range(4)]
    plain = read_pairs(_write(tmp_path / "a.jsonl", rows), How("trl"))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps([*rows, {"bad": 1}]).encode()))
    assert read_pairs(tmp_path / "b.json.gz").fingerprint == plain.fingerprint
    changed = read_pairs(_write(tmp_path / "c.jsonl", [*rows[:3], _row(3) | {"chosen": "c3 "}]), How("trl"))
    assert changed.fingerprint != plain.fingerprint
    assert read_pairs(_write(tmp_path / "d.jsonl", rows[::-1]), How("trl")).fingerprint != plain.fingerprint


def test_tool_calls_without_text_are_different_pairs() -> None:
    def call(name: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name}}]}]

    user = [{"role": "user", "content": "x"}]
    rows = [{"prompt": user, "chosen": call(a), "rejected": call(b)} for a, b in (("f", "g"), ("f", "h"))]
    pairs = collect(enumerate(rows, 1), {})
    assert len({row["pair_id"] for row in pairs.rows}) == 2


def test_hub_names_and_folders(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list([_row(0), _row(1)]).save_to_disk(tmp_path / "one")
    DatasetDict({"test": Dataset.from_list([_row(0)])}).save_to_disk(tmp_path / "dict")
    assert [row["prompt"] for row in read_hub(str(tmp_path / "one")).rows] == ["p0", "p1"]
    assert len(read_hub(str(tmp_path / "dict"), "test")) == 1
    with pytest.raises(DiagError, match=r"no such split.*got train.*one of test"):
        read_hub(str(tmp_path / "dict"))
    with pytest.raises(DiagError, match="no such dataset folder"):
        read_hub(str(tmp_path / "absent"))


def test_an_unreachable_hub_is_one_line_and_quick() -> None:
    start = time.monotonic()
    with pytest.raises(DiagError, match="not in the local cache and the hub cannot be reached") as caught:
        read_hub("owner/absent-preferences")
    assert "\n" not in str(caught.value) and time.monotonic() - start < 20


def test_datasets_and_texts() -> None:
    message = {"prompt": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "b", "tools": '[{"name": "f"}]'}
    pairs = collect([(1, message)], {})
    dataset = to_dataset(pairs.rows)
    assert dataset.column_names == ["prompt", "chosen", "rejected", "pair_id", "tools"]
    assert dataset[0]["chosen"] == [{"content": "a", "role": "assistant"}]
    (texts,) = text_rows(pairs.rows, "eval")
    assert texts.pop("beside") is not None  # the tools, which no text shows
    assert texts == {
        "split": "eval", "pair_id": pairs.rows[0]["pair_id"], "prompt": "user: x", "chosen": "a", "rejected": "b"
    }  # fmt: skip
    with pytest.raises(DiagError, match="no rows to train"):
        to_dataset([])


PROMPTS = st.lists(st.sampled_from([f"q{i}" for i in range(12)] + ["Q1 ", " q2\n"]), min_size=2, max_size=40)


@given(prompts=PROMPTS, held_out=st.sampled_from([0.1, 0.3, 0.7, 1, 2, 5]), seed=st.integers(0, 3))
def test_no_prompt_stands_on_both_sides(prompts: list[str], held_out: float, seed: int) -> None:
    """Also where they differ in case and white space only; every row stands on exactly one side, in order."""
    rows = [{"pair_id": str(i), "prompt": prompt} for i, prompt in enumerate(prompts)]
    if len({prompt_key(p) for p in prompts}) < 2 or held_out >= len(rows):
        with pytest.raises(DiagError):
            split_pairs(rows, held_out, seed)
        return
    train, aside = split_pairs(rows, held_out, seed)
    assert train and aside
    assert not {prompt_key(r["prompt"]) for r in train} & {prompt_key(r["prompt"]) for r in aside}
    assert sorted((r["pair_id"] for r in train + aside), key=int) == [r["pair_id"] for r in rows]
    assert [int(r["pair_id"]) for r in train] == sorted(int(r["pair_id"]) for r in train)


def test_a_share_is_stable_when_rows_are_added_and_depends_on_the_seed() -> None:
    """200 prompts at 0.25: 50 expected, sd sqrt(200 · 0.25 · 0.75) = 6.1; within four of them."""
    rows = [_row(i) for i in range(400)]
    first = {r["prompt"] for r in split_pairs(rows[:200], 0.25)[1]}
    assert abs(len(first) - 50) < 25
    more = {r["prompt"] for r in split_pairs(rows, 0.25)[1]}
    assert first == {p for p in more if int(p[1:]) < 200}
    assert first != {r["prompt"] for r in split_pairs(rows[:200], 0.25, seed=1)[1]}
    assert len(split_pairs(rows, 37)[1]) == 37
    assert split_pairs(rows, 0) == (rows, [])
    with pytest.raises(DiagError, match="nothing would be left"):
        split_pairs(rows, 400)


ROWS = [{"pair_id": f"{i:016x}"} for i in range(50)]


@given(seed=st.integers(0, 5), shuffle=st.randoms())
def test_the_order_of_taking_depends_on_neither_the_source_nor_its_size(seed: int, shuffle: random.Random) -> None:
    other = list(ROWS)
    shuffle.shuffle(other)
    first = [ROWS[i]["pair_id"] for i in rank(ROWS, seed)]
    assert sorted(first) == [row["pair_id"] for row in ROWS]
    assert first == [other[i]["pair_id"] for i in rank(other, seed)]
    assert first != [ROWS[i]["pair_id"] for i in rank(ROWS, 6)]
    few = {row["pair_id"] for row in ROWS[:25]}
    assert [ROWS[i]["pair_id"] for i in rank(ROWS[:25], seed)] == [p for p in first if p in few]


def test_leaking_training_rows_are_found() -> None:
    kept, leaked = without_prompts_of([_row(0), _row(1, "P  x"), _row(2)], [_row(9, "p x ")])
    assert [r["chosen"] for r in kept] == ["c0", "c2"] and [r["chosen"] for r in leaked] == ["c1"]


def test_llamafactory_demo(shared_data: Path) -> None:
    """300 rows, of which 5 repeat an earlier one word for word: 295 pairs, 80 with a system turn."""
    pairs = read_pairs(shared_data / "llamafactory_dpo_en_demo.json").require()
    assert (pairs.n_read, len(pairs), pairs.kind) == (300, 295, "messages")
    assert pairs.summary()["dropped"] == {"duplicated pair": 5}
    assert pairs.issues["row"].tolist() == [158, 187, 231, 249, 276]
    assert pairs.rows[0]["prompt"][0]["role"] == "user" and pairs.rows[0]["chosen"][0]["role"] == "assistant"
    assert pairs.issues.loc[0, "detail"] == "the same as row 14"


def test_learning_dynamics_pairs(shared_data: Path) -> None:
    """500 hh-rlhf prompts; row 248's rejected answer is white space."""
    pairs = read_pairs(shared_data / "learningdyn_formal_prob_train.jsonl").require()
    assert (pairs.n_read, len(pairs), pairs.kind) == (500, 499, "text")
    assert pairs.issues[["row", "why"]].to_numpy().tolist() == [[248, "empty response: rejected"]]
    assert all(row["prompt"].endswith("\n\nAssistant:") for row in pairs.rows)


def test_the_same_real_pairs_with_an_implicit_prompt(shared_data: Path, tmp_path: Path) -> None:
    """hh-rlhf's own form, prompt and answer in one text, must give back the same ids."""
    explicit = read_pairs(shared_data / "learningdyn_formal_prob_train.jsonl").rows
    joined = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in explicit]
    implicit = read_pairs(_write(tmp_path / "hh.jsonl", joined), How("trl"))
    assert [row["pair_id"] for row in implicit.rows] == [row["pair_id"] for row in explicit]
