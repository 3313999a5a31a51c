"""One preference pair as every row format must give it: its messages read, its rules checked.

A pair's prompt, chosen and rejected are all text, or all lists of messages {"role", "content"}. A row that cannot be
read raises `BadRow` with a reason; a row that was read but deserves a look carries notes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from dpo_diag.documents import parse_json, repeated_keys
from dpo_diag.records.conversation import ROLES, Message, prompt_text, response_text, shown_keys
from dpo_diag.records.literals import read_literal
from dpo_diag.records.pair_id import pair_id_of
from dpo_diag.records.row_files import BadRow, twice
from dpo_diag.records.schemas import SIDES

Turns = list[Message]

WITH_MEDIA = "dpo_diag.training.DiagDPOTrainer takes TRL's data sets with images"
"""What to do with rows that a text reader cannot take."""
HUMAN_MARK = "\n\nHuman:"
WHOLE = "whole text"
"""The kind of a text that is no prompt and no answer, but both."""


@dataclass
class Pair:
    """All text or all messages; `extra` is for the chat template; `notes` are (why, detail) of what deserves a look.

    A row of one answer (SFT) is `alone`: it holds it as `chosen`, and "" as `rejected`; a whole text has the prompt "".
    """

    prompt: str | Turns
    chosen: str | Turns
    rejected: str | Turns = ""
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    alone: bool = False

    @property
    def kind(self) -> str:
        if not isinstance(self.prompt, str):
            return "messages"
        return WHOLE if self.alone and not self.prompt else "text"

    @property
    def sides(self) -> tuple[str, ...]:
        """The answers that there are."""
        return SIDES[:1] if self.alone else SIDES

    @property
    def pair_id(self) -> str:
        return pair_id_of({"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, **self.extra})

    def swapped(self) -> Pair:
        """The pair that prefers the other response."""
        return Pair(self.prompt, self.rejected, self.chosen, self.extra)


def shorten(value: Any, width: int = 80) -> str:
    """One line, at most `width` characters, for a report."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def prompt_key(prompt: Any) -> str:
    """Identity of a prompt for splitting: case and white space do not make another prompt."""
    text = " ".join(prompt_text(prompt).casefold().split())
    return hashlib.sha256(text.encode()).hexdigest()


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """A field that a row must have.

    Raises:
        BadRow: it is absent or null.
    """
    value = row.get(name)
    if value is None:
        present = ", ".join(str(k) for k in row) or "nothing"
        hint = "fill it in, or give rows of another form a file of their own"
        raise BadRow(f"missing field {name}", f"the row has {shorten(present)}", hint)
    return value


def is_messages(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    """Whether a value is a list of objects, as conversations are written."""
    return isinstance(value, (list, tuple)) and all(isinstance(m, Mapping) for m in value)


def _content(value: Any, where: str) -> str:
    """A message's content: text, or a list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        parts = []
        for part in value:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                parts.append(part["text"])
            else:
                kind = part.get("type", "?") if isinstance(part, Mapping) else type(part).__name__
                raise BadRow("a message is not text", f"{where} holds a part of type {kind}", WITH_MEDIA)
        return "".join(parts)
    raise BadRow("wrong type", f"{where} is {type(value).__name__}, expected text")


def _refuse_repeated(printed: Any) -> None:
    """Of what a cell of text held; a JSON row with such a key is refused before."""
    if (bad := twice(repeated_keys(printed))) is not None:
        raise bad


def read_messages(value: Any, where: str, role_key: str = "role", content_key: str = "content") -> Turns:
    """Messages with known role names and text contents, every other key that a chat template may show
    (`conversation.shown_keys`), and the assistant's `weight: 0`.

    A message may lack content only where it has tool calls, reasoning or the like; its content is then "".
    """
    if not is_messages(value):
        raise BadRow("wrong type", f"{where} is {type(value).__name__}, expected a list of messages")
    _refuse_repeated(value)
    turns: Turns = []
    for i, message in enumerate(value):
        place = f"{where}[{i}]"
        role = message.get(role_key)
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise BadRow("unknown role", f"{place} has {role_key} {role!r}")
        shown = shown_keys(message, besides=(role_key, content_key))
        content = message.get(content_key)
        if content is None and not shown.keys() - {"name", "tool_call_id"}:
            raise BadRow("missing field " + content_key, f"{place} has {shorten(', '.join(map(str, message)))}")
        turn: Message = {"role": ROLES[role.lower()], "content": _content("" if content is None else content, place)}
        # A turn that its data leave out of the training, which a supervised one heeds; other weights are not used.
        unweighted = {"weight": 0} if message.get("weight") == 0 and turn["role"] == "assistant" else {}
        turns.append(turn | shown | unweighted)
    return turns


def is_empty(value: str | Turns) -> bool:
    """Whether a prompt or response holds nothing but white space."""
    return not response_text(value).strip()


def check_pair(pair: Pair) -> Pair:
    """The rules that hold in every format.

    Raises:
        BadRow: an empty prompt or response, equal responses, text that UTF-8 cannot hold.
    """
    for name in pair.sides:
        if is_empty(getattr(pair, name)):
            raise BadRow(f"empty response: {name}", "nothing but white space")
    if pair.kind != WHOLE and not prompt_text(pair.prompt).strip():
        raise BadRow("empty prompt", "nothing but white space")
    if pair.chosen == pair.rejected:
        raise BadRow("chosen equals rejected", shorten(response_text(pair.chosen)))
    for name in ("prompt", *pair.sides):
        try:
            prompt_text(getattr(pair, name)).encode()
        except UnicodeEncodeError as error:
            raise BadRow("undecodable text", f"{name}: a lone surrogate at character {error.start}") from None
    if response_text(pair.chosen).split() == response_text(pair.rejected).split():
        pair.notes.append(("responses differ in white space only", shorten(response_text(pair.chosen))))
    for name in pair.sides if pair.kind != WHOLE else ():
        value = getattr(pair, name)
        if HUMAN_MARK in value if isinstance(value, str) else any(m["role"] == "user" for m in value):
            pair.notes.append(("a response holds the user's turns", f"{name}: the loss would train on them"))
    return pair


def _printed_tools(text: str, error: ValueError) -> str:
    """Tools that a CSV holds as Python or numpy print lists, as JSON."""
    try:
        tools = read_literal(text)
    except ValueError:
        tools = None
    if not isinstance(tools, list):
        raise BadRow("tools is not JSON", shorten(error))
    return json.dumps(tools, sort_keys=True)


def template_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template also takes: `tools` as JSON text (TRL reads it so), `chat_template_kwargs`."""
    extra: dict[str, Any] = {}
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            _refuse_repeated(parse_json(tools))
            extra["tools"] = tools
        except ValueError as error:
            extra["tools"] = _printed_tools(tools, error)
    elif isinstance(tools, (list, tuple)) and tools:
        extra["tools"] = json.dumps(list(tools), sort_keys=True, default=str)
    elif tools is not None and not isinstance(tools, (str, list, tuple)):
        raise BadRow("wrong type", f"tools is {type(tools).__name__}, expected JSON text or a list")
    options = row.get("chat_template_kwargs")
    if options:
        if not isinstance(options, Mapping):
            raise BadRow("wrong type", f"chat_template_kwargs is {type(options).__name__}, expected a mapping")
        extra["chat_template_kwargs"] = dict(options)
    return extra
