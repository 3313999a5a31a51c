"""`pair_id`: a content hash, so that rows join across checkpoints, runs, machines and trainers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from dpo_diag.records.conversation import canonical_messages, canonical_tools, is_conversation


def content_hash(document: Any, digits: int | None = 16) -> str:
    """The first hex digits (all for None) of the SHA-256 of a JSON document, whatever the order of its keys."""
    payload = json.dumps(document, ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(payload.encode()).hexdigest()[:digits]


def _canonical(value: Any) -> Any:
    """Text as it is; messages without what no model sees, so that a trainer's extra keys change no identity."""
    if isinstance(value, str):
        return value
    if is_conversation(value):
        return canonical_messages(value)
    if isinstance(value, Sequence):
        return [int(token) for token in value]
    raise TypeError(f"a prompt or response is text, messages or token ids, got {type(value).__name__}")


def make_pair_id(prompt: Any, chosen: Any, rejected: Any, tools: Any = None) -> str:
    """Identity of a preference pair: 16 hex digits of SHA-256 over prompt, chosen and rejected.

    Args:
        prompt, chosen, rejected: a string, a list of chat messages, or (where no text is known) a list of token ids.
        tools: what a chat template is told of tools, a list or its JSON text: the same question with other tools is
            another pair. None or empty for none.
    """
    parts = [_canonical(prompt), _canonical(chosen), _canonical(rejected)]
    if (described := canonical_tools(tools)) is not None:
        parts.append({"tools": described})
    return content_hash(parts)
