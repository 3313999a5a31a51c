"""LLaMA-Factory's ShareGPT ranking format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.forms import FORMATS, RowFormat
from dpo_diag.rows.pair import Pair, Turns, check_pair, field_of, is_messages, read_messages, shorten, template_options


def _sharegpt_keys(message: Mapping[str, Any]) -> tuple[str, str]:
    return ("from", "value") if "from" in message or "value" in message else ("role", "content")


def _sharegpt_answer(value: Any, name: str) -> Turns:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    messages = [value] if isinstance(value, Mapping) else value
    if not is_messages(messages) or not messages:
        raise BadRow("wrong type", f"{name} is {type(value).__name__}, expected a message with from and value")
    turns = read_messages(messages, name, *_sharegpt_keys(messages[0]))
    if any(turn["role"] != "assistant" for turn in turns):
        raise BadRow("the response is not the assistant's", f"{name} is from {shorten(messages[0])}")
    return turns


def from_sharegpt(row: Mapping[str, Any]) -> Pair:
    """LLaMA-Factory's ShareGPT ranking format: conversations[{from, value}], chosen{from, value}, rejected{from,
    value}, and the optional columns `system` and `tools`. `messages` with role and content are read as well.

    After an optional system turn, user (or observation) and assistant turns must alternate and the user must have the
    last word: LLaMA-Factory drops the other rows too (`Invalid role tag`, `Invalid message count`).
    """
    name = "conversations" if row.get("conversations") is not None else "messages"
    if row.get(name) is None:
        field_of(row, "conversations")
    conversation = row[name]
    if not is_messages(conversation):
        raise BadRow("wrong type", f"{name} is {type(conversation).__name__}, expected a list of messages")
    keys = _sharegpt_keys(conversation[0]) if conversation else ("from", "value")
    prompt = read_messages(conversation, name, *keys)
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise BadRow("wrong type", f"system is {type(system).__name__}, expected text")
    if system and system.strip():
        prompt = [{"role": "system", "content": system}, *(m for m in prompt if m["role"] != "system")]
    turns = prompt[1:] if prompt and prompt[0]["role"] in ("system", "developer") else prompt
    if not turns:
        raise BadRow("empty prompt", "no turn of the user")
    for i, message in enumerate(turns):
        if message["role"] not in (("user", "tool") if i % 2 == 0 else ("assistant",)):
            raise BadRow("turns do not alternate", f"turn {i + 1} is the {message['role']}'s")
    if len(turns) % 2 == 0:
        raise BadRow("the prompt does not end with the user's turn", f"{len(turns)} turns")
    chosen, rejected = (_sharegpt_answer(field_of(row, side), side) for side in ("chosen", "rejected"))
    return check_pair(Pair(prompt, chosen, rejected, template_options(row)))


def _claims(row: Mapping[str, Any]) -> bool:
    return ("conversations" in row or "messages" in row) and "prompt" not in row


FORMATS.add("sharegpt", RowFormat(_claims, from_sharegpt))
