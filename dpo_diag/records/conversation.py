"""Chat messages as text: THE way in which a conversation becomes what records hold, ids hash and people read.

A message is {"role", "content"} and, where it calls tools, "tool_calls". Trainers write contents as text, as null
beside a tool call, or as a list of parts; a tool call counts as content, else two calls without text would be one
answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
_TURN = r"(system|developer|user|assistant|tool): "


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of at least one message."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, Mapping) for m in value)


def message_text(message: Mapping[str, Any]) -> str:
    """Text of a message's content, its parts joined, and its tool calls as JSON; "" for neither."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, (list, tuple)):
        content = "".join(str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in content)
    text = "" if content is None else str(content)
    return text + json.dumps(_given(calls), sort_keys=True, default=str) if calls else text


def _given(value: Any) -> Any:
    """Without null entries: a data set gives the arguments of every call the keys of all calls, filled with null."""
    if isinstance(value, Mapping):
        return {key: _given(entry) for key, entry in value.items() if entry is not None}
    return [_given(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def response_text(value: str | Sequence[Mapping[str, Any]]) -> str:
    """A response as text: what its messages hold, one after the other, without their roles."""
    return value if isinstance(value, str) else "\n".join(message_text(m) for m in value)


def prompt_text(value: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as text: messages as `role: content` paragraphs."""
    if isinstance(value, str):
        return value
    return "\n\n".join(f"{m.get('role', '')}: {message_text(m)}" for m in value)


def parse_prompt(text: str) -> list[Message] | None:
    """The messages behind `prompt_text`; None for text that no messages gave."""
    if not re.match(_TURN, text):
        return None
    # re.split also gives what the group inside the lookahead matched: every other piece is a turn.
    turns = re.split(rf"\n\n(?={_TURN})", text)[::2]
    pairs = (turn.partition(": ") for turn in turns)
    return [{"role": role, "content": content} for role, _, content in pairs]
