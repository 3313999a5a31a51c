"""Chat messages as text: THE way in which a conversation becomes what records hold, ids hash and people read.

A message is {"role", "content"} and, as they apply, the keys of EXTRA_KEYS. Trainers write contents as text, as null
beside a tool call, or as a list of parts; a tool call counts as content, else two calls without text would be one
answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

Message = dict[str, Any]
_TURN = r"(system|developer|user|assistant|tool): "
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Role names of the OpenAI, ShareGPT and LLaMA-Factory formats -> the names that chat templates know."""
EXTRA_KEYS = ("tool_calls", "reasoning_content", "name", "tool_call_id")
"""Keys beside role and content that a chat template may show to the model, and that an id therefore counts."""


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of at least one message."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, Mapping) for m in value)


def content_text(content: Any) -> str:
    """A content's text, its parts joined; "" for null."""
    if isinstance(content, (list, tuple)):
        return "".join(str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in content)
    return "" if content is None else str(content)


def canonical_messages(messages: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """What makes a conversation itself, for hashing: [role, text] of each message, and its other keys if it has any.

    Two conversations that a model may see differently have different forms; null entries, which a data set fills in,
    and keys that no template shows make none.
    """
    canonical: list[list[Any]] = []
    for message in messages:
        role, content = str(message.get("role", "")), message.get("content")
        extra = {key: _given(message[key]) for key in EXTRA_KEYS if message.get(key)}
        if isinstance(content, (list, tuple)):
            # A part that is no text (an image) counts with all it says, in its place.
            others = [[i, _given(p)] for i, p in enumerate(content) if isinstance(p, Mapping) and "text" not in p]
            extra |= {"parts": others} if others else {}
        canonical.append([ROLES.get(role.lower(), role), content_text(content), *([extra] if extra else [])])
    return canonical


def canonical_tools(tools: Any) -> Any:
    """A row's tools, for hashing: the same for JSON text and for what it stands for; None for none."""
    if isinstance(tools, str):
        with suppress(ValueError):  # text that is no JSON is an identity, too
            tools = json.loads(tools)
    return _given(tools) or None


def message_text(message: Mapping[str, Any]) -> str:
    """Text of a message's content, its parts joined, and its tool calls as JSON; "" for neither."""
    text, calls = content_text(message.get("content")), message.get("tool_calls")
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
