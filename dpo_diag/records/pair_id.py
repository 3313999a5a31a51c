"""`pair_id`: a content hash, so that rows join across checkpoints, runs, machines and trainers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from dpo_diag.records.conversation import is_conversation, message_text


def _canonical(value: Any) -> Any:
    """Chat messages keep role and text (tool calls included), so that a trainer's extra keys change no identity."""
    if isinstance(value, str):
        return value
    if is_conversation(value):
        return [[str(message.get("role", "")), message_text(message)] for message in value]
    if isinstance(value, Sequence):
        return [int(token) for token in value]
    raise TypeError(f"a prompt or response is text, messages or token ids, got {type(value).__name__}")


def make_pair_id(prompt: Any, chosen: Any, rejected: Any) -> str:
    """Identity of a preference pair: 16 hex digits of SHA-256 over prompt, chosen and rejected.

    Each argument is a string, a list of chat messages, or (where no text is known) a list of token ids.
    """
    payload = json.dumps([_canonical(prompt), _canonical(chosen), _canonical(rejected)], ensure_ascii=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:16]
