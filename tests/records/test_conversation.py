"""A conversation becomes the same text, and the same pair, wherever it comes from."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.records import make_pair_id
from dpo_diag.records.conversation import is_conversation, message_text, parse_prompt, prompt_text, response_text

U = {"role": "user", "content": "Why?"}
A1, A2 = ({"role": "assistant", "content": text} for text in ("Because.", "No idea."))


def test_rendering_by_hand() -> None:
    assert prompt_text([{"role": "system", "content": "S"}, U]) == "system: S\n\nuser: Why?"
    assert response_text([A1, A2]) == "Because.\nNo idea."
    assert prompt_text("as it is") == response_text("as it is") == "as it is"


def test_parts_and_tool_calls_are_content() -> None:
    call: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "1"}]}
    assert message_text(call) == '[{"arguments": "1", "name": "f"}]'
    filled = {"tool_calls": [{"name": "f", "arguments": {"a": "1", "b": None}, "id": None}]}
    assert message_text(filled) == '[{"arguments": {"a": "1"}, "name": "f"}]'
    assert message_text({"content": [{"type": "text", "text": "a"}, "b", {"type": "image"}]}) == "ab[image]"
    assert message_text({"role": "user"}) == ""
    thought = {"role": "assistant", "content": "Four.", "reasoning_content": "2 + 2", "thinking": None, "weight": 1}
    assert message_text(thought) == "<think>\n2 + 2\n</think>\n\nFour."
    parts_of_thought = [{"type": "thinking", "thinking": "2 + 2"}, {"type": "text", "text": "Four.", "image": None}]
    assert message_text({"content": parts_of_thought}) == message_text(thought)
    assert message_text({"content": "Sunny.", "tool_plan": "ask"}) == 'Sunny.{"tool_plan": "ask"}'
    other = call | {"tool_calls": [{"name": "g", "arguments": "1"}]}
    ids = {make_pair_id([U], [a], [b]) for a, b in ((call, A1), (other, A1), (call, other))}
    assert len(ids) == 3
    parts = [U | {"content": [{"type": "text", "text": "Why?"}]}]
    assert make_pair_id(parts, [A1], [A2]) == make_pair_id([U], [A1], [A2])


def test_what_a_conversation_is() -> None:
    assert is_conversation([U]) and is_conversation((U, A1))
    assert not any(is_conversation(value) for value in ([], "user: x", [U, "x"], [1, 2], None))


def test_prompts_are_read_back() -> None:
    text = "system: be kind\n\nuser: one\n\ntwo"
    assert parse_prompt(text) == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one\n\ntwo"}]
    assert parse_prompt("Q: one?") is None


CONTENT = st.text(st.characters(exclude_characters=":"), max_size=12)


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": CONTENT}),
                min_size=1, max_size=4))  # fmt: skip
def test_every_prompt_without_a_turn_inside_comes_back(messages: list[dict[str, str]]) -> None:
    assert parse_prompt(prompt_text(messages)) == messages
