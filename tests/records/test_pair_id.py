"""`pair_id` joins the same pair wherever it comes from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from dpo_diag.records import make_pair_id
from dpo_diag.records.pair_id import texts_of


def test_the_identity_is_fixed() -> None:
    """printf '["p", "c", "r"]' | sha256sum: ["p", "c", "r"], first 16 hex digits: other machines must find the same."""
    assert make_pair_id("p", "c", "r") == "e627a5b65f0c2071"


def test_every_part_counts_and_sides_are_not_interchangeable() -> None:
    ids = {
        make_pair_id(*t) for t in (("p", "c", "r"), ("p", "r", "c"), ("pc", "", "r"), ("", "pc", "r"), ("p", "c", "r "))
    }
    assert len(ids) == 5


def test_plain_messages_keep_their_identity() -> None:
    """printf '[[["user", "hi"]], "c", "r"]' | sha256sum: as before keys beyond role and content counted."""
    plain = [{"role": "user", "content": "hi"}]
    assert make_pair_id(plain, "c", "r") == hashlib.sha256(b'[[["user", "hi"]], "c", "r"]').hexdigest()[:16]
    assert make_pair_id(plain, "c", "r") != make_pair_id("hi", "c", "r")


def test_messages_ignore_what_no_model_sees() -> None:
    """A trainer's own keys, the nulls that a data set fills in, and the formats' names of a role."""
    plain = make_pair_id([{"role": "user", "content": "hi"}], "c", "r")
    for other in (
        {"role": "user", "content": "hi", "weight": 1}, {"role": "user", "content": "hi", "tool_calls": None},
        {"role": "human", "content": "hi"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "user", "content": "hi", "name": None}, {"role": "user", "content": "hi", "reasoning": ""},
        {"role": "user", "content": [{"type": "text", "text": "hi", "image": None}]},
    ):  # fmt: skip
        assert make_pair_id([other], "c", "r") == plain, other


def test_whatever_a_model_may_see_counts() -> None:
    """No two of these are the same conversation, though several have the same text."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "hi"},
        {"role": "user", "content": "hi", "name": "x"},
        {"role": "user", "content": "None"},
        {"role": "user", "content": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": json.dumps([call], sort_keys=True)},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "assistant", "content": "hi", "reasoning_content": "they greet"},
        *({"role": "assistant", "content": "hi", key: "they greet"} for key in ("reasoning", "thinking", "tool_plan")),
        {"role": "assistant", "content": "hi", "prefix": True},
        {"role": "user", "content": [{"type": "image", "image": None}, {"type": "text", "text": "hi"}]},
        {"role": "tool", "content": "hi", "tool_call_id": "1"},
        {"role": "tool", "content": "hi", "tool_call_id": "2"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image", "image": "a.png"}]},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image", "image": "b.png"}]},
    ]
    assert len({make_pair_id([m], "c", "r") for m in messages}) == len(messages)


def test_tools_are_part_of_the_question() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    bare, told = make_pair_id("p", "c", "r"), make_pair_id("p", "c", "r", tools)
    assert told != bare
    assert make_pair_id("p", "c", "r", json.dumps(tools)) == told
    assert make_pair_id("p", "c", "r", []) == make_pair_id("p", "c", "r", "") == bare


def test_an_object_without_content_is_no_identity() -> None:
    """Its printed form is an address in memory: no two runs would agree."""
    with pytest.raises(TypeError, match="has no content to identify it by"):
        make_pair_id([{"role": "user", "content": [{"type": "video", "video": object()}]}], "c", "r")


def test_options_of_the_template_are_part_of_the_question() -> None:
    """Thinking switched off is another prompt; what a data set fills in with null is not."""
    bare = make_pair_id("p", "c", "r")
    off, on = ({"enable_thinking": value} for value in (False, True))
    ids = {make_pair_id("p", "c", "r", template_options=options) for options in (off, on)}
    assert len(ids | {bare}) == 3
    assert make_pair_id("p", "c", "r", template_options={"enable_thinking": None}) == bare
    assert make_pair_id("p", "c", "r", template_options=json.dumps(off)) in ids


def test_texts_say_what_else_the_model_sees() -> None:
    """Equal texts with other tools, images or names of speakers have another hash; plain ones have none."""
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": "p"}], "chosen": "c", "rejected": "r"}
    assert texts_of(row) == {"prompt": "user: p", "chosen": "c", "rejected": "r", "beside": None}
    named = [{"role": "user", "content": "p", "name": "Ann"}]
    others = [{"tools": '[{"name": "f"}]'}, {"images": ["a.png"]}, {"images": ["b.png"]}, {"prompt": named}]
    beside = [texts_of(row | other)["beside"] for other in others]
    assert None not in beside and len(set(beside)) == len(others)


def test_token_ids_are_an_identity_too() -> None:
    assert make_pair_id([1, 2], [3], [4]) != make_pair_id([1], [2, 3], [4])


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="got float"):
        make_pair_id(1.5, "c", "r")
