"""What a cell of text holds: plain text, or messages that were printed into it (JSON, Python, numpy, ChatML).

Text that begins as such a print and cannot be read back is markup: a model must not learn to write it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_diag.records.literals import read_literal
from dpo_diag.rows.pair import Turns

MESSAGE_LISTS = ("messages", "conversations", "conversation")
ROLE_KEYS = ("role", "from", "author", "speaker")
CONTENT_KEYS = ("content", "value", "text", "message")

_CHATML_TURN = re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n(.*?)(?:<\|im_end\|>\s*|\Z)", re.DOTALL)
_CHATML = "<|im_start|>"
CHATML_END = re.compile(r"(?<!\s)\s*+<\|im_end\|>\s*\Z")
_PRINTED = re.compile(
    r"""\s*+(?:array\()?\[?\s*+\{\s*+['"](?:role|from|author|speaker|content|value|messages|conversations?)['"]\s*:"""
)
_USER_TURN = re.compile(
    r"\s*+(?:<s>|<bos>|<\|begin_of_text\|>)?\s*+(?:<\|im_start\|>|<\|(?:user|system)\|>|\[INST\]|<start_of_turn>user"
    r"|<\|start_header_id\|>(?:user|system)<)"
)
_MARKS = ("[", "{", "<", "array(")


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages: objects that all say who speaks."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(m, Mapping) and any(key in m for key in ROLE_KEYS) for m in value)
    )


def keys_of(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The names under which messages hold the speaker and what is said: role and content, from and value, ..."""
    first = messages[0] if messages else {}
    role = next((key for key in ROLE_KEYS if key in first), "role")
    usual = "value" if role == "from" else "content"
    return role, next((key for key in (usual, *CONTENT_KEYS) if any(key in m for m in messages)), usual)


def decoded(value: Any) -> Any:
    """A cell of text that holds messages, or an object with messages, as that; anything else as it is."""
    if not isinstance(value, str) or not (start := value[:32].lstrip()).startswith(_MARKS):
        return value
    if start.startswith((_CHATML, "<s>" + _CHATML)):
        return chatml(value) or value
    found = printed(value) if start[0] != "<" else None
    holds_chat = isinstance(found, Mapping) and (
        any(is_chat(found.get(name)) for name in MESSAGE_LISTS) or is_chat([found])
    )
    return found if holds_chat or is_chat(found) else value


def printed(value: Any) -> Any:
    """What a cell of text prints, a list or an object; None where it prints none. Other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        found = read_literal(value)
    except ValueError:
        return None
    return found if isinstance(found, (list, tuple, Mapping)) else None


def chatml(text: str) -> Turns | None:
    """ChatML text as messages, without a last turn that is only opened; None where it is not ChatML throughout."""
    turns: Turns = []
    place = text.index(_CHATML) if _CHATML in text else 0
    while place < len(text):
        match = _CHATML_TURN.match(text, place)
        if match is None or _CHATML in match.group(2):
            return None
        opened = not match.group(2) and match.end() == len(text) and "<|im_end|>" not in match.group()
        if not opened:
            turns.append({"role": match.group(1), "content": match.group(2)})
        place = match.end()
    return turns or None


def markup(text: str, response: bool) -> str | None:
    """How a text begins that is markup and no text for a model; None for plain text.

    A prompt may hold a chat template's marks; a response that begins with a user's or system's turn is a whole
    conversation.
    """
    if not text[:32].lstrip().startswith(_MARKS):
        return None
    match = _PRINTED.match(text) or (_USER_TURN.match(text) if response else None)
    return match.group().strip() if match else None
