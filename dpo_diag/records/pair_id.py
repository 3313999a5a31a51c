"""`pair_id`: a content hash, so that rows join across checkpoints, runs, machines and trainers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_diag.records.conversation import canonical_messages, canonical_option, filled_in, is_conversation


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


def make_pair_id(
    prompt: Any, chosen: Any, rejected: Any, tools: Any = None, *, template_options: Any = None, images: Any = None
) -> str:
    """Identity of a preference pair: 16 hex digits of SHA-256 over everything that the model sees of it.

    Args:
        prompt, chosen, rejected: a string, a list of chat messages, or (where no text is known) a list of token ids.
        tools: what a chat template is told of tools, a list or its JSON text: the same question with other tools is
            another pair. None or empty for none.
        template_options: further arguments of the chat template (TRL's column `chat_template_kwargs`), likewise.
        images: the images that the messages' placeholders stand for, in order; each counts by its values, or by its
            path or URL where only that is known.

    Raises:
        TypeError: a part that has no content to identify it by.
    """
    if is_conversation(prompt):
        prompt, images = filled_in(prompt, images)
    parts = [_canonical(prompt), _canonical(chosen), _canonical(rejected)]
    given = {"tools": tools, "chat_template_kwargs": template_options, "images": images}
    for name, value in given.items():
        if (described := canonical_option(value)) is not None:
            parts.append({name: described})
    return content_hash(parts)


def pair_id_of(row: Mapping[str, Any]) -> str:
    """`make_pair_id` of a row as TRL's preference format writes it, whatever columns it has.

    Raises:
        KeyError: no prompt, chosen or rejected.
        TypeError: as `make_pair_id`.
    """
    image = row.get("image")
    return make_pair_id(
        row["prompt"], row["chosen"], row["rejected"], row.get("tools"),
        template_options=row.get("chat_template_kwargs"), images=row.get("images") if image is None else [image],
    )  # fmt: skip
