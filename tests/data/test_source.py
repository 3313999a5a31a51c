"""The configuration's data from file to rows: split, picked, tokenised, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from dpo_diag.config import DataConfig
from dpo_diag.data.source import load_data
from dpo_diag.errors import DiagError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def _write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _rows(n: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"prompt {i}", "chosen": "yes", "rejected": "no"} for i in range(start, start + n)]


def test_one_file_is_split_picked_and_reported(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows: list[Any] = [*_rows(60), {"prompt": "x"}, {"prompt": "p" * 40, "chosen": "a", "rejected": "b"}]
    config = DataConfig(kind="jsonl", path=_write(tmp_path / "a.jsonl", rows), eval_share=0.3, max_eval_pairs=5)
    data = load_data(config)
    data.check(config.max_bad_share)
    notes = data.tokenise(tokenizer, 20)
    data.check_tokens(config.max_truncated_share)
    assert len(data.held_out) == 5 and len(data.train) + 5 <= 60 and data.kind == "text"
    assert notes == [
        "the data are plain text: prompts go to the model without its chat template (data.chat=true: with it)",
        "train: 1 of 45 pairs (2 %): the prompt fills max_length, first in row 62: 40 tokens; nothing of the answers "
        "is left, and such rows are left out: raise trainer.max_length",
    ]
    report = json.loads(data.write_report(tmp_path / "run").read_text())
    assert report["n_read"] == 62 and report["n_dropped"] == 1
    assert report["n_train"] == len(data.train) and report["n_held_out"] == 5
    assert sum(t["n_dropped"] for t in report["tokens"].values()) <= 1
    listed = pd.read_csv(tmp_path / "run" / "data_issues.csv")
    assert len(listed) == report["n_issues"]
    assert listed.loc[listed["stage"] == "read", ["row", "why"]].to_numpy().tolist() == [[61, "missing field chosen"]]


def test_a_held_out_file_takes_its_prompts_out_of_training(tmp_path: Path) -> None:
    config = DataConfig(
        kind="jsonl",
        path=_write(tmp_path / "a.jsonl", _rows(10)),
        eval_path=_write(tmp_path / "b.jsonl", _rows(4, start=8)),
    )
    data = load_data(config)
    assert (len(data.train), len(data.held_out), len(data.leaked)) == (8, 4, 2)
    summary = data.summary()
    assert summary["n_leaked"] == 2 and summary["held_out_source"]["n_pairs"] == 4
    assert data.issues()["why"].tolist() == ["the prompt is in the held-out set"] * 2
    assert data.notes() == [
        "train: 2 rows dropped: 2 the prompt is in the held-out set (first row 9)",
        "rows are listed in data_issues.csv",
    ]
    with pytest.raises(DiagError, match="every training prompt is also in the held-out set"):
        load_data(DataConfig(kind="jsonl", path=config.path, eval_path=config.path))


def test_a_folder_of_splits(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    splits = {"train": Dataset.from_list(_rows(6)), "test": Dataset.from_list(_rows(2, start=10))}
    DatasetDict(splits).save_to_disk(tmp_path / "d")
    data = load_data(DataConfig(kind="hub", name=str(tmp_path / "d"), eval_split="test"))
    assert (len(data.train), len(data.held_out)) == (6, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(kind="jsonl"), "no data file named"),
        (DataConfig(kind="hub"), "no data set named"),
        (DataConfig(kind="task"), "not a data source of pairs"),
        (DataConfig(kind="jsonl", path="absent.jsonl"), "no such data file"),
    ],
)
def test_wrong_sources_are_one_line(config: DataConfig, message: str) -> None:
    with pytest.raises(DiagError, match=message) as caught:
        load_data(config)
    assert "\n" not in str(caught.value)


def test_kinds_must_agree(tmp_path: Path) -> None:
    chat = [{"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}]
    with pytest.raises(DiagError, match="another kind"):
        load_data(
            DataConfig(
                kind="jsonl", path=_write(tmp_path / "a.jsonl", _rows(3)), eval_path=_write(tmp_path / "b.jsonl", chat)
            )
        )
    lonely = load_data(DataConfig(kind="jsonl", path=_write(tmp_path / "c.jsonl", chat)))
    assert (len(lonely.train), lonely.held_out) == (1, [])
