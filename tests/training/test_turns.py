"""What the assistant wrote in a conversation, by the template's markers, by prefixes, by what its content changes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from dpo_diag.errors import DiagError
from dpo_diag.training import DiagSFTTrainer
from dpo_diag.training.first_look import first_look
from dpo_diag.training.turns import TokenisedTurns, assistant_tokens

from .test_sft import CHATS, TEMPLATE, arguments
from .tiny import make_model, make_tokenizer

MARKED = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<eos>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
STRIPPING = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ m['content'] }}"
    "{% else %}{{ m['content'].split('</think>')[-1].lstrip() }}{% endif %}{{ '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""As Qwen3's: what was thought is shown in the last turn alone."""
REASONING = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m.thinking and loop.last %}{{ '[' + m.thinking + ']' }}"
    "{% endif %}{{ m['content'] + '<eos>' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
COUNTED = "{{ messages | length }}{% for m in messages %}{{ ':' + m['content'] }}{% endfor %}"
ENDED = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + ';' }}{% endfor %}{{ '<eos>' }}"
THINK = [
    {"role": "user", "content": "cat"}, {"role": "assistant", "content": "<think>far</think> red"},
    {"role": "user", "content": "dog?"}, {"role": "assistant", "content": "<think>near</think> two blue"},
]  # fmt: skip
TALK = CHATS[1]["messages"]
THOUGHT = [{**m, "thinking": "far"} if m["role"] == "assistant" else m for m in TALK]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def trained(tokenizer: Any, messages: Any, template: str, first: int = 0) -> list[str] | None:
    """The text of each run of the assistant's tokens."""
    ids, mask = assistant_tokens(tokenizer, messages, first, chat_template=template)
    assert ids == tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True)["input_ids"]
    if mask is None:
        return None
    assert len(mask) == len(ids)
    runs = itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([i for i, _ in run]) for kind, run in runs if kind]


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        # The line break behind the marked turn is outside of the markers.
        (MARKED, TALK, [" red red<eos>", " two blue<eos>"]),
        # Without markers a turn ends where what follows it begins: after its end token.
        (TEMPLATE, TALK, [" red red<eos>", " two blue<eos>"]),
        # The first turn is shown without its thoughts, so no prefix holds it: all the same it is its shown text, its
        # end token and the line break behind it; the last one is trained with its thoughts.
        (STRIPPING, THINK, ["red<eos>\n", "<think>near</think> two blue<eos>\n"]),
        (REASONING, THOUGHT, [" red red<eos>", "[far] two blue<eos>"]),
        # The first character depends on the length: the turns are what changes with their contents; no end token.
        (COUNTED, TALK, [" red red", " two blue"]),
        # The end token ends the conversation: only the last turn has it.
        (ENDED, TALK, [" red red;", " two blue;<eos>"]),
    ],
    ids=["markers", "prefix", "thoughts stripped", "reasoning key", "no prefix", "end of the conversation"],
)  # fmt: skip
def test_every_turn_of_the_assistant(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: Any, expected: list[str]
) -> None:
    found = trained(tokenizer, messages, template)
    assert found == expected
    assert trained(tokenizer, messages, template, first=3) == expected[1:]


def test_a_template_that_does_not_tell_is_not_guessed(tokenizer: PreTrainedTokenizerFast) -> None:
    """Contents shown twice, and one that refuses the conversation up to the first answer: nothing is known."""
    twice = "{% for _ in range(2) %}{% for m in messages %}{{ m['content'] }}{% endfor %}{% endfor %}"
    picky = "{% if messages | length == 2 %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    assert trained(tokenizer, TALK, twice) is None
    assert trained(tokenizer, TALK, picky) is None
    row = TokenisedTurns(tokenizer, twice, "assistant")({"messages": TALK})
    assert set(row["labels"]) == {-100} and set(row["completion_mask"]) == {-1}
    whole = TokenisedTurns(tokenizer, twice, "all")({"messages": TALK})
    assert whole["labels"] == whole["input_ids"] and set(whole["completion_mask"]) == {-1}


def test_a_mask_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    """` red dog<eos>` is four tokens: the space, `red`, ` dog`, the end; before them stand the roles, in bytes."""
    tokenizer.chat_template = TEMPLATE
    talk = [{"role": "user", "content": " cat"}, {"role": "assistant", "content": " red dog"}]
    ids, mask = assistant_tokens(tokenizer, talk)
    head = tokenizer("<user> cat<eos><assistant>")["input_ids"]
    answer = tokenizer(" red dog<eos>")["input_ids"]
    assert [tokenizer.decode([i]) for i in answer] == [" ", "red", " dog", "<eos>"]
    assert ids == head + answer
    assert mask == [0] * len(head) + [1, 1, 1, 1]


def sft(folder: Path, template: str, rows: list[dict[str, Any]], **options: Any) -> DiagSFTTrainer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    settings = {name: options.pop(name) for name in ("max_length",) if name in options}
    return DiagSFTTrainer(
        model=make_model(1), args=arguments(folder, eval_strategy="no", **settings), processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows), **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("loss_on", "line"),
    [
        ("assistant", "<user>1 cat<eos><assistant>⟦ red red<eos>⟧<user>dog?<eos><assistant>⟦ two blue<eos>⟧"),
        ("last", "<user>1 cat<eos><assistant> red red<eos><user>dog?<eos><assistant>⟦ two blue<eos>⟧"),
        ("all", "⟦<user>1 cat<eos><assistant> red red<eos><user>dog?<eos><assistant> two blue<eos>⟧"),
        (None, "⟦<user>1 cat<eos><assistant> red red<eos><user>dog?<eos><assistant> two blue<eos>⟧"),
    ],
)
@pytest.mark.parametrize("as_pair", [True, False])
def test_what_the_loss_counts_is_shown(tmp_path: Path, loss_on: str | None, line: str, as_pair: bool) -> None:
    """A conversation, and the same as a prompt of three turns with its completion; unsaid, it is as TRL has it: of a
    conversation everything, of a completion its last turn."""
    row: dict[str, Any] = {"prompt": TALK[:3], "completion": TALK[3:]} if as_pair else {"messages": TALK}
    look = first_look(sft(tmp_path, TEMPLATE, [row], loss_on=loss_on))
    if loss_on is None and as_pair:
        line = "<user>1 cat<eos><assistant> red red<eos><user>dog?<eos><assistant>⟦ two blue<eos>⟧"
    assert look is not None and look.lines()[1] == f"  sequence  {line}"


def test_rows_that_do_not_tell_are_left_out_and_cut_ones_keep_their_marks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The template shows a conversation that begins with `twice` two times: one row of two. Of the other, cut at 30
    tokens, the marks are cut as the tokens are: two times a space and `red`, and the end token, are left."""
    template = (
        "{% if messages[0]['content'] == 'twice' %}{% for m in messages %}{{ m['content'] }}{% endfor %}{% endif %}"
    )
    rows = [{"messages": [{**TALK[0], "content": "twice"}, *TALK[1:]]}, {"messages": TALK}]
    trainer = sft(tmp_path, template + TEMPLATE, rows, loss_on="assistant", max_length=30)
    assert "train dataset: TRL leaves out 1 of 2 rows (50 %): nothing of a row is trained" in caplog.text
    (row,) = list(trainer.train_dataset)
    assert len(row["input_ids"]) == 30
    assert row["_dpo_diag_response"] == [int(label != -100) for label in row["labels"]]
    assert sum(row["_dpo_diag_response"]) == 5


def test_a_text_has_no_turns(tmp_path: Path) -> None:
    """Asked for the assistant's turns of a text, nothing could be left but to train on all of it."""
    with pytest.raises(DiagError, match="loss_on"):
        sft(tmp_path, TEMPLATE, [{"text": "1 cat: red"}], loss_on="assistant")
    with pytest.raises(DiagError, match="loss_on"):
        sft(tmp_path, TEMPLATE, [{"messages": TALK}], loss_on="answer")


def test_an_answer_that_is_missing_is_no_error(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of a completion that no assistant wrote nothing is trained: TRL leaves the row out."""
    row = {"prompt": TALK[:2], "completion": [{"role": "user", "content": "and?"}]}
    found = TokenisedTurns(tokenizer, MARKED, "last")(row)
    assert set(found["labels"]) == {-100}
    assert set(found["completion_mask"]) == {0}


@pytest.mark.parametrize("template", [MARKED, TEMPLATE, STRIPPING], ids=["markers", "prefix", "thoughts stripped"])
def test_a_turn_of_weight_0_is_not_trained(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    """The second of two turns; a weight of 1, or none, trains it; weights of others say nothing."""
    shown = "red red<eos>\n" if template == STRIPPING else " red red<eos>"
    weighed = [{**m, "weight": 0} if i in (0, 3) else {**m, "weight": 1} for i, m in enumerate(TALK)]
    assert trained(tokenizer, weighed, template) == [shown]
    assert trained(tokenizer, [{**m, "weight": 0} for m in TALK], template) == []


def test_how_many_turns_of_weight_0_there_are_is_said_and_a_row_of_nothing_else_is_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Of five rows one has two such turns and another one; the first one has nothing to train. Everything counts where
    the whole sequence does."""
    tokenizer.chat_template = TEMPLATE
    rows = [{"messages": [dict(m) for m in row["messages"]]} for row in CHATS]
    for row, turn in ((0, 1), (0, 3), (2, 1)):
        rows[row]["messages"][turn]["weight"] = 0
    rows = [{"messages": [{"weight": 1, **m} for m in row["messages"]]} for row in rows]

    def labels(loss_on: str) -> list[int]:
        trainer = DiagSFTTrainer(
            model=make_model(1), args=arguments(tmp_path, eval_strategy="no"), processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows), loss_on=loss_on,
        )  # fmt: skip
        assert "untrained_turns" not in trainer.train_dataset.column_names
        return [sum(label != -100 for label in row) for row in trainer.train_dataset["labels"]]

    assert len(labels("assistant")) == 4
    assert "3 turns of the assistant with weight 0, not trained" in caplog.text
    assert "TRL leaves out 1 of 5 rows" in caplog.text
    caplog.clear()
    assert len(labels("all")) == 5 and "weight 0" not in caplog.text
