"""Rows of one answer (SFT): what becomes prompt and answer, what is refused, and that a pair's training refuses all."""

from __future__ import annotations

from typing import Any

import pytest

from dpo_diag.data.pairs import PairSet, collect
from dpo_diag.rows.form import How

SYSTEM = {"role": "system", "content": "s"}
ASK = {"role": "user", "content": "a"}
SAY = {"role": "assistant", "content": "b"}
MORE = {"role": "user", "content": "c"}
LAST = {"role": "assistant", "content": "d"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
FOUND = {"role": "tool", "content": "1"}
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def read(*rows: dict[str, Any], supervised: bool = True, **known: Any) -> PairSet:
    return collect(enumerate(rows, 1), {}, How(supervised=supervised, **known))


@pytest.mark.parametrize(
    ("row", "kind", "prompt", "answer"),
    [
        ({"messages": [ASK, SAY, MORE, LAST]}, "messages", [ASK, SAY, MORE], [LAST]),
        ({"messages": [ASK, CALL, FOUND, LAST]}, "messages", [ASK], [CALL, FOUND, LAST]),
        ({"conversations": SHAREGPT, "system": "s"}, "messages", [SYSTEM, ASK], [SAY]),
        ({"prompt": "a", "messages": [ASK, SAY]}, "messages", [ASK], [SAY]),  # UltraChat: its first question again
        ({"prompt": "p:", "completion": " c"}, "text", "p:", " c"),
        ({"prompt": [ASK], "completion": [SAY]}, "messages", [ASK], [SAY]),
        ({"prompt": [ASK], "completion": "b"}, "messages", [ASK], [SAY]),
        ({"messages": [ASK], "response": "b"}, "messages", [ASK], [SAY]),
        ({"instruction": "a", "input": "", "output": "b"}, "messages", [ASK], [SAY]),
        ({"instruction": "a", "input": "x", "output": "b", "text": "### a x b"}, "messages",
         [{"role": "user", "content": "a\nx"}], [SAY]),
        ({"instruction": "c", "history": [["a", "b"]], "output": "d"}, "messages", [ASK, SAY, MORE], [LAST]),
        ({"text": "User: a\nUser: b"}, "whole text", "", "User: a\nUser: b"),
        ({"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"}, "messages", [ASK], [SAY]),
    ],
)  # fmt: skip
def test_every_form_gives_a_prompt_and_an_answer(row: dict[str, Any], kind: str, prompt: Any, answer: Any) -> None:
    found = read(row)
    assert found.issues.empty and found.kind == kind and found.is_single
    assert (found.rows[0]["prompt"], found.rows[0]["chosen"]) == (prompt, answer)
    assert "rejected" not in found.rows[0] and found.rows[0]["chosen_bytes"] > 0
    refused = read(row, supervised=False)
    assert not refused.rows and refused.issues["why"].tolist() == ["one answer a row or none, no pairs"]
    assert "dpo-train trainer=sft" in refused.hints["one answer a row or none, no pairs"]


def test_the_columns_may_be_named_and_a_question_may_stay_text() -> None:
    """x and y are no known names; data.chat=false ends the question's line, as for pairs."""
    named = read({"x": "a", "y": "b"}, wanted={"prompt": ("x",), "chosen": ("y",)})
    assert (named.rows[0]["prompt"], named.rows[0]["chosen"]) == ([ASK], [SAY])
    plain = read({"instruction": "a", "output": "b"}, chat=False)
    assert (plain.rows[0]["prompt"], plain.rows[0]["chosen"], plain.kind) == ("a\n", "b", "text")


def test_bad_rows_are_dropped_each_with_its_reason() -> None:
    """Of seven conversations two are good: one ends with a question, one has none, one answers nothing, one is the
    first again, one is a pair, which a file of single answers does not read by half."""
    found = read(
        {"messages": [ASK, SAY]}, {"messages": [ASK, SAY, MORE]}, {"messages": [SAY]},
        {"messages": [ASK, {"role": "assistant", "content": " "}]}, {"messages": [ASK, SAY]},
        {"messages": [ASK, LAST]}, *[{"messages": [ASK, SAY]}] * 58, {"messages": [ASK, SAY], "rejected": "x"},
    )  # fmt: skip
    assert [row["row"] for row in found.rows] == [1, 6]
    assert found.issues["why"].value_counts().to_dict() == {
        "duplicated row": 59, "the conversation does not end with an answer": 1, "empty prompt": 1,
        "empty response": 1, "another form than the file's": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "row", [{"prompt": "p"}, {"completion": "c"}, {"prompt": "p", "text": "t u v"}, {"prompt": "p", "chosen": "c"}]
)
def test_what_leaves_open_which_is_the_answer_is_refused(row: dict[str, Any]) -> None:
    assert not read(row).rows


def test_of_pairs_the_form_stays_theirs_and_says_what_is_not_read() -> None:
    """A file with both columns holds pairs: SFT trains their chosen answer, and the conversation is named as unread."""
    found = read({"prompt": "p", "chosen": "c", "rejected": "r", "messages": [ASK, SAY]})
    assert (found.rows[0]["chosen"], found.rows[0]["rejected"], found.is_single) == ("c", "r", False)
    assert "does not see: messages" in found.parts[0].says()[1]


def test_a_file_that_mixes_pairs_and_single_answers_is_read_as_pairs_and_says_so() -> None:
    """Two pairs and one conversation in the first rows: the pairs are taken, the conversation is dropped."""
    pairs = [
        {"prompt": [ASK], "chosen": [SAY], "rejected": [LAST]},
        {"prompt": [MORE], "chosen": [SAY], "rejected": [LAST]},
    ]
    found = read(*pairs, {"messages": [ASK, SAY]})
    assert found.parts[0].says()[0].startswith("2 of 3 rows read as TRL's preference pairs")
    assert found.issues[["row", "why"]].to_numpy().tolist() == [[3, "missing field chosen"]]
    assert found.hints == {"missing field chosen": "fill it in, or give rows of another form a file of their own"}


def test_the_id_is_of_the_content_and_no_pairs() -> None:
    """The same answer in another form is the same row; beside a rejected answer it is another."""
    ids = [
        read(row).rows[0]["pair_id"]
        for row in (
            {"messages": [ASK, SAY]}, {"conversations": SHAREGPT}, {"instruction": "a", "output": "b"},
            {"prompt": [ASK], "chosen": [SAY], "rejected": [LAST]}, {"messages": [ASK, LAST]},
        )
    ]  # fmt: skip
    assert ids[0] == ids[1] == ids[2] and len(set(ids)) == 3


def test_a_turn_that_is_not_to_be_trained_keeps_its_weight_and_the_row_its_id() -> None:
    """OpenAI's `weight: 0`, on a turn of the assistant alone; other weights say nothing that is used."""
    weights = (0, 0, 1, 1)
    talk = [{"role": role, "content": content} for role, content in zip(("user", "assistant") * 2, "qara", strict=True)]
    plain, weighed = (
        collect([(1, {"messages": messages})], {}, How(supervised=True)).rows[0]
        for messages in (talk, [{**m, "weight": w} for m, w in zip(talk, weights, strict=True)])
    )
    assert [m.get("weight") for m in (*weighed["prompt"], *weighed["chosen"])] == [None, 0, None, None]
    assert weighed["pair_id"] == plain["pair_id"]
