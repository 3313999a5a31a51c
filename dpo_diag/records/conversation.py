"""Chat messages as text: THE way in which a conversation becomes what records hold, ids hash and people read.

A message is {"role", "content"} and whatever else its chat template may read: any key that `shown_keys` keeps. Trainers
write contents as text, as null beside a tool call, or as a list of parts; tool calls and reasoning count as content,
else two calls without text would be one answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence, Sized
from contextlib import suppress
from typing import Any

import numpy as np

from dpo_diag.documents import parse_json
from dpo_diag.records.media import media_key

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
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thoughts")
"""Where data sets put what the assistant thinks before its content; chat templates know one or another of them."""
_ABOUT = frozenset({
    "weight", "loss_weight", "loss", "train", "training", "trainable", "masked", "id", "message_id", "uuid", "index",
    "turn", "turn_identifier", "timestamp", "created_at", "date", "score", "rating", "reward", "label", "annotations",
    "metadata", "source", "model", "hashed_ip", "header", "country", "state", "language", "toxic", "redacted",
})  # fmt: skip
"""Keys that say something about a message and that no chat template shows: trainers' weights, data sets' bookkeeping.
Any other key counts, since a template may read it: a list of those that some template reads is never complete."""


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of at least one message."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, Mapping) for m in value)


def shown_keys(message: Mapping[str, Any], *, besides: Collection[str] = ("role", "content")) -> dict[str, Any]:
    """What a message holds beside role and content that a chat template may show; null and empty entries, which a data
    set fills in, are left out."""
    kept = {str(k): v for k, v in message.items() if k not in besides and str(k).lower() not in _ABOUT}
    return {key: value for key, value in kept.items() if not _is_nothing(value)}


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, Sized) and not len(value))


def _text_of_part(part: Any) -> str | None:
    """A part's text; None for an image and anything else that is no text."""
    if isinstance(part, Mapping):
        text = part.get("text")
        return text if isinstance(text, str) and "text" in str(part.get("type") or "text") else None
    return part if isinstance(part, str) else None


def _shown_part(part: Any) -> str:
    """A part for people to read: text as it is, thoughts as a think block, anything else as its kind and a short hash,
    so that two images are two."""
    if (text := _text_of_part(part)) is not None:
        return text
    if not isinstance(part, Mapping):
        return "" if part is None else str(part)
    if thoughts := [content_text(part[key]) for key in REASONING_KEYS if part.get(key)]:
        return "".join(map(_think_block, thoughts))
    rest = canonical_value({key: value for key, value in part.items() if key != "type"})
    tag = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8] if rest else ""
    return f"[{part.get('type', '?')}{' ' + tag if tag else ''}]"


def _think_block(thoughts: str) -> str:
    return f"<think>\n{thoughts}\n</think>\n\n"


def content_text(content: Any) -> str:
    """A content's text, its parts joined; "" for null."""
    if isinstance(content, (list, tuple)):
        return "".join(text for part in content if (text := _text_of_part(part)) is not None)
    return "" if content is None else str(content)


def canonical_messages(messages: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """What makes a conversation itself, for hashing: [role, text] of each message, and its other keys if it has any.

    Two conversations that a model may see differently have different forms; null entries, which a data set fills in,
    and keys that no template shows make none.
    """
    canonical: list[list[Any]] = []
    for message in messages:
        role, content = str(message.get("role", "")), message.get("content")
        extra = {key: canonical_value(value) for key, value in shown_keys(message).items()}
        if isinstance(content, (list, tuple)):
            # A part that is no text (an image) counts with all it says, in its place.
            others = [[i, canonical_value(p)] for i, p in enumerate(content) if _text_of_part(p) is None]
            extra |= {"parts": others} if others else {}
        canonical.append([ROLES.get(role.lower(), role), content_text(content), *([extra] if extra else [])])
    return canonical


def filled_in(messages: Sequence[Mapping[str, Any]], images: Any) -> tuple[list[Message], list[Any]]:
    """Messages with the images in their places, and those that have none: each fills the next placeholder part; without
    any placeholder they stand before the first user's text, where TRL puts them."""
    left, turns = list(images if isinstance(images, (list, tuple)) else [] if images is None else [images]), []
    contents = [m["content"] for m in messages if isinstance(m.get("content"), (list, tuple))]
    bare = not any(_is_placeholder(part) for content in contents for part in content)
    for message in messages:
        content = message.get("content")
        if left and bare and message.get("role") == "user" and isinstance(content, str):
            content = [{"type": "image"}] * len(left) + [{"type": "text", "text": content}]
        if isinstance(content, (list, tuple)):
            content = [{"type": "image", "image": left.pop(0)} if left and _is_placeholder(p) else p for p in content]
        turns.append({**message, "content": content})
    return turns, left


def _is_placeholder(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image" and len(shown_keys(part, besides=("type",))) == 0


def canonical_option(value: Any) -> Any:
    """A row's tools or template options, for hashing: the same for JSON text and for what it stands for; None for
    none."""
    if isinstance(value, str):
        with suppress(ValueError):  # text that is no JSON is an identity, too
            value = parse_json(value)
    return canonical_value(value) or None


def canonical_value(value: Any) -> Any:
    """Any entry of a row as JSON, for hashing: without null entries (a data set gives the arguments of every call the
    keys of all calls, filled with null), images and arrays by their values.

    Raises:
        TypeError: an object that says nothing of its content, so that no two machines would agree on it.
    """
    if (media := media_key(value)) is not None:
        return media
    if isinstance(value, Mapping):
        return {str(key): canonical_value(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [canonical_value(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if " object at 0x" in str(value):
        raise TypeError(f"a {type(value).__name__} has no content to identify it by")
    return str(value)


def message_text(message: Mapping[str, Any]) -> str:
    """Text of a message: its reasoning as a think block, its content with the parts joined, its tool calls and whatever
    else a template may read as JSON; "" for none of these."""
    shown, content = shown_keys(message), message.get("content")
    text = "".join(_think_block(content_text(shown.pop(key))) for key in REASONING_KEYS if key in shown)
    text += "".join(map(_shown_part, content)) if isinstance(content, (list, tuple)) else content_text(content)
    calls = shown.pop("tool_calls", None)
    rest = {key: value for key, value in shown.items() if key not in ("name", "tool_call_id")}
    for value in (calls, rest):
        text += json.dumps(canonical_value(value), sort_keys=True, default=str) if value else ""
    return text


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
