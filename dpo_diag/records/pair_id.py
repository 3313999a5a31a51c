"""`pair_id`: a content hash, so that rows join across checkpoints, runs, machines and trainers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_diag.records.conversation import (
    canonical_messages,
    canonical_option,
    filled_in,
    is_conversation,
    prompt_text,
    response_text,
)


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
    return content_hash([*parts, *_beside(tools, template_options, images)])


def _beside(tools: Any, template_options: Any, images: Any) -> list[dict[str, Any]]:
    """What the model sees beside a pair's messages, each kind that there is."""
    given = {"tools": tools, "chat_template_kwargs": template_options, "images": images}
    described = {name: canonical_option(value) for name, value in given.items()}
    return [{name: value} for name, value in described.items() if value is not None]


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of TRL's preference format beside prompt, chosen and rejected."""
    image = row.get("image")
    images = row.get("images") if image is None else [image]
    return {"tools": row.get("tools"), "template_options": row.get("chat_template_kwargs"), "images": images}


def pair_id_of(row: Mapping[str, Any]) -> str:
    """`make_pair_id` of a row as TRL's preference format writes it, whatever columns it has.

    Raises:
        KeyError: no prompt, chosen or rejected.
        TypeError: as `make_pair_id`.
    """
    return make_pair_id(row["prompt"], row["chosen"], row["rejected"], **_columns(row))


def texts_of(row: Mapping[str, Any]) -> dict[str, str | None]:
    """A row's columns of the table `texts`: what people read of a pair, and a hash of what only the model sees beside
    it, so that equal texts are not taken for equal pairs.

    Raises:
        KeyError: no prompt, chosen or rejected.
    """
    beside = _beside(**_columns(row))
    if is_conversation(row["prompt"]):
        # Names and ids of messages are not in their text.
        beside += [{"extra": extra} for _, _, *extra in canonical_messages(row["prompt"]) if extra]
    answers = {side: response_text(row[side]) for side in ("chosen", "rejected")}
    return {"prompt": prompt_text(row["prompt"]), **answers, "beside": content_hash(beside) if beside else None}
