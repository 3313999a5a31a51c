"""Rows of one answer through the reader of files: splits, held-out files, and what max_length cuts of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.config import DataConfig
from dpo_diag.data.pairs import to_dataset
from dpo_diag.data.source import PreferenceData, load_data
from dpo_diag.data.token_report import Look
from dpo_diag.errors import DiagError
from dpo_diag.training.inputs import as_sft
from tests.training.tiny import make_tokenizer


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path: str, **options: Any) -> PreferenceData:
    return load_data(DataConfig(kind="jsonl", path=path, **options), supervised=True)


def test_whole_texts_are_split_by_themselves_and_reach_trl_as_text(tmp_path: Path) -> None:
    """20 texts have no prompt that they could share: each stands on one side, and a second file takes out its own."""
    rows = [{"text": f"number {i}"} for i in range(20)]
    data = load(write(tmp_path / "t.jsonl", rows), eval_share=0.3)
    train, held_out = ({row["chosen"] for row in part} for part in (data.train, data.held_out))
    assert len(train) + len(held_out) == 20 and not train & held_out and held_out
    assert to_dataset([as_sft(row) for row in data.train]).to_list()[0] == {"text": data.train[0]["chosen"]}
    own = load(str(tmp_path / "t.jsonl"), eval_path=write(tmp_path / "e.jsonl", rows[:3]))
    assert (len(own.train), len(own.held_out), len(own.leaked)) == (17, 3, 3)


def test_a_set_takes_files_of_pairs_and_of_single_answers(tmp_path: Path) -> None:
    """Each file is read in its own form; of the pair its chosen answer is trained."""
    pairs = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    single = write(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "d"}])
    data = load(f"{pairs},{single}", eval_share=0.0)
    assert [as_sft(row) for row in data.train] == [
        {"prompt": "p", "completion": "c"}, {"prompt": "q", "completion": "d"}
    ]  # fmt: skip
    assert [line.split(" read as ")[1].split(":")[0] for line in data.readings()] == [
        "TRL's preference pairs", "one answer a row (SFT)"
    ]  # fmt: skip


def test_no_usable_row_says_which_columns_were_expected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    with pytest.raises(DiagError, match=r"no usable row.*messages, prompt and completion, or text"):
        load(path).check(0.05)


TURNS = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": " red"},
         {"role": "user", "content": " dog" * 20}, {"role": "assistant", "content": " blue"}]  # fmt: skip


@pytest.mark.parametrize(
    ("loss_on", "outcome"), [("assistant", "truncated"), ("all", "truncated"), ("last", "dropped")]
)
def test_a_long_conversation_stays_while_the_loss_counts_earlier_turns(
    tmp_path: Path, loss_on: str, outcome: str
) -> None:
    """The last answer lies beyond max_length: the first one is trained all the same, unless the last alone counts."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + '<eos>' }}{% endfor %}"  # a word is a token or more
    )
    data = load(write(tmp_path / "a.jsonl", [{"messages": TURNS}, {"messages": TURNS[:2]}]), eval_share=0.0)
    data.tokenise(tokenizer, 16, "keep_start", Look(tokenizer, sides=("chosen",), loss_on=loss_on))
    report = data.tokens["train"]
    assert report.table["outcome"].tolist() == [outcome, "whole"]
    assert len(data.train) == (1 if outcome == "dropped" else 2)
    assert report.table["rejected_tokens"].tolist() == [0, 0]
    assert report.issues["why"].tolist() == (
        ["the prompt fills max_length"] if outcome == "dropped" else ["a response is cut", "the prompt is cut"]
    )
    assert report.summary()["response_tokens"] == report.table["chosen_tokens"].sum() > 0
