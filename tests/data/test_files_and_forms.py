"""Several files as one set, configurations of a hub's set, and what is said of how rows were read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpo_diag.config import ColumnsConfig, DataConfig
from dpo_diag.data.hub import read_hub
from dpo_diag.data.pairs import read_pairs
from dpo_diag.data.source import load_data
from dpo_diag.errors import DiagError


def _write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def asked(*numbers: int) -> list[dict[str, str]]:
    return [{"question": f"q{i}?", "chosen": f"c{i}", "rejected": f"r{i}"} for i in numbers]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.jsonl with questions 0 and 1, b/c.parquet with Alpaca's 2, b/d.csv.gz with 3, twice."""
    _write(tmp_path / "a.jsonl", asked(0, 1))
    (tmp_path / "b").mkdir()
    pd.DataFrame([{"instruction": "q2?", "input": "", "chosen": "c2", "rejected": "r2"}]).to_parquet(
        tmp_path / "b/c.parquet"
    )
    table = pd.DataFrame(asked(3, 3)).to_csv(index=False)
    (tmp_path / "b/d.csv.gz").write_bytes(gzip.compress(table.encode()))
    return tmp_path


@pytest.mark.parametrize("shape", ["text", "list"])
def test_several_files_and_globs_are_one_set(folder: Path, shape: str) -> None:
    """Each file has a form of its own; a row is named by its file and its place there (a CSV's header is line 1)."""
    names = [f"{folder}/a.jsonl", f"{folder}/b/*"]
    pairs = read_pairs(",".join(names) if shape == "text" else names)
    assert [row["prompt"][0]["content"] for row in pairs.rows] == ["q0?", "q1?", "q2?", "q3?"]
    assert [row["row"] for row in pairs.rows] == [1, 2, 3, 5]
    assert pairs.place(5) == (f"{folder}/b/d.csv.gz", 2)
    assert pairs.issues[["row", "detail"]].to_numpy().tolist() == [[6, "the same as row 2"]]
    assert [part.reading.form for part in pairs.parts] == ["question", "alpaca", "question"]
    data = load_data(DataConfig(kind="jsonl", path=names, eval_share=0.0))
    issues = data.issues()
    assert issues[["file", "row"]].to_numpy().tolist() == [[f"{folder}/b/d.csv.gz", 3]]
    assert data.readings()[1:] == [
        f"{folder}/b/c.parquet: 1 row read as Alpaca: prompt = instruction + input, as the user's turn, "
        "chosen, rejected",
        f"{folder}/b/d.csv.gz: 1 of 2 rows read as a question and two answers: prompt = question, as the user's turn, "
        "chosen, rejected",
    ]


def test_a_pattern_that_matches_nothing_is_an_error(folder: Path) -> None:
    with pytest.raises(DiagError, match=r"no file matches.*got .*\*\.json;"):
        read_pairs(f"{folder}/a.jsonl,{folder}/*.json")
    with pytest.raises(DiagError, match=r"is a folder.*a glob.*c\.parquet, d\.csv\.gz"):
        read_pairs(f"{folder}/b")


def test_a_column_that_one_of_the_files_lacks_names_that_file(folder: Path) -> None:
    columns = ColumnsConfig(prompt="question")
    with pytest.raises(DiagError, match=r"no such column; in data\.columns\.prompt for .*c\.parquet; got question"):
        load_data(DataConfig(kind="jsonl", path=f"{folder}/a.jsonl,{folder}/b/*", columns=columns))


def test_what_was_read_and_what_was_not_is_reported(tmp_path: Path) -> None:
    rows = [row | {"review": "a long remark", "source": "web"} for row in asked(0, 1, 2)]
    path = str(_write(tmp_path / "a.jsonl", [*rows, {"question": "q"}]))
    data = load_data(DataConfig(kind="jsonl", path=path, max_bad_share=0.5))
    says = "prompt = question, as the user's turn, chosen, rejected"
    assert data.readings() == [
        f"{path}: 3 of 4 rows read as a question and two answers: {says}",
        f"{path}: columns of text that the model does not see: review (data.columns says what a column is)",
    ]
    report = json.loads(data.write_report(tmp_path / "run").read_text())
    assert report["readings"] == [
        {"path": path, "n_read": 4, "n_pairs": 3, "form": "question", "says": says, "columns_not_read": ["review"]}
    ]
    listed = pd.read_csv(tmp_path / "run" / "data_issues.csv")
    assert listed[["row", "why"]].to_numpy().tolist() == [[4, "missing field chosen"]]


def test_a_file_without_pairs_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c", "label": bool(i % 2)} for i in range(3)]
    data = load_data(DataConfig(kind="jsonl", path=str(_write(tmp_path / "kto.jsonl", rows))))
    assert data.readings() == [] and len(data.issues()) == 3
    with pytest.raises(
        DiagError, match=r"3 of 3 rows: 3 unpaired answers, KTO's form.*hint: train them with TRL's"
    ) as e:
        data.check(0.05)
    assert "\n" not in str(e.value)


def test_columns_form_and_chat_are_the_user_s_to_say(tmp_path: Path) -> None:
    row = {"headline": "Sea", "good": "It is wide.", "bad": "It is dry."}
    path = str(_write(tmp_path / "a.jsonl", [row]))
    columns = ColumnsConfig(prompt="headline", chosen="good", rejected="bad")
    data = load_data(DataConfig(kind="jsonl", path=path, columns=columns))
    assert data.train[0]["prompt"] == [{"role": "user", "content": "Sea"}]
    plain = load_data(DataConfig(kind="jsonl", path=path, columns=columns, chat=False))
    assert (plain.train[0]["prompt"], plain.train[0]["chosen"]) == ("Sea\n", "It is wide.")
    assert plain.readings() == [f"{path}: 1 row read as a question and two answers: prompt = headline, chosen = good, "
                                "rejected = bad, as plain text"]  # fmt: skip
    with pytest.raises(DiagError, match=r"not a column; in data\.columns\.chosen"):
        load_data(DataConfig(kind="jsonl", path=path, columns=ColumnsConfig(chosen=3)))
    with pytest.raises(DiagError, match=r"unknown row form; in data\.form; got alpacca; expected auto, alpaca, "):
        load_data(DataConfig(kind="jsonl", path=path, form="alpacca"))


def test_an_implicit_prompt_can_be_any_shared_beginning(tmp_path: Path) -> None:
    """The threshold is a share of the responses' mean length: Why? is 4, the responses are 20 and 12: 0.25."""
    row = {"chosen": "Why? Because of the sea.", "rejected": "Why? It is wide."}
    path = str(_write(tmp_path / "a.jsonl", [row]))
    assert len(load_data(DataConfig(kind="jsonl", path=path)).train) == 1
    strict = load_data(DataConfig(kind="jsonl", path=path), thresholds={"rows.implicit_prompt_min_share": 0.26})
    assert strict.issues()["why"].tolist() == ["the shared beginning is short for a prompt"]
    loose = DataConfig(kind="jsonl", path=path, implicit_prompt="any")
    assert len(load_data(loose, thresholds={"rows.implicit_prompt_min_share": 0.26}).train) == 1


def test_configurations_of_a_data_set(tmp_path: Path) -> None:
    """A folder as the hub has it: README.md names two configurations."""
    _write(tmp_path / "a" / "train.jsonl", asked(0, 1))
    _write(tmp_path / "b" / "train.jsonl", asked(2))
    settings = "".join(f"- config_name: {n}\n  data_files: {f}/*.jsonl\n" for n, f in (("kind", "a"), ("safe", "b")))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{settings}---\n# x\n")
    name = str(tmp_path)
    assert [len(read_hub(name, config=config)) for config in ("kind", "safe")] == [2, 1]
    data = load_data(DataConfig(kind="hub", name=name, config="safe"))
    assert data.summary()["source"]["config"] == "safe"
    with pytest.raises(
        DiagError, match=r"has several configurations.*expected one of kind, safe; hint: data\.config=kind"
    ):
        read_hub(name)
    with pytest.raises(DiagError, match=r"no such configuration.*got kin; expected one of kind, safe"):
        read_hub(name, config="kin")
