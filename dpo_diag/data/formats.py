"""One raw row to a preference pair: TRL's formats, hh-rlhf's implicit prompts, LLaMA-Factory's ShareGPT ranking.

A pair's prompt, chosen and rejected are all text, or all lists of messages {"role", "content"}. A row that cannot be
read raises `BadRow` with a reason; a row that was read but deserves a look carries notes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Turns = list[Message]

ASSISTANT_MARK = re.compile(r"\n\nAssistant:")
HUMAN_MARK = "\n\nHuman:"
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


class BadRow(Exception):
    """Why a row is no usable pair: `why`, a short fixed phrase (rows are counted by it), `detail`, what stood there."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(why)
        self.why, self.detail = why, detail


@dataclass
class Pair:
    """All text or all messages; `extra` is for the chat template; `notes` are (why, detail) of what deserves a look."""

    prompt: str | Turns
    chosen: str | Turns
    rejected: str | Turns
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return "text" if isinstance(self.prompt, str) else "messages"


def shorten(value: Any, width: int = 80) -> str:
    """One line, at most `width` characters, for a report."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def response_text(value: str | Turns) -> str:
    """A response as text: messages' contents (and tool calls as JSON), one after the other."""
    if isinstance(value, str):
        return value
    return "\n".join(m["content"] + _calls(m) for m in value)


def render(value: str | Turns) -> str:
    """A prompt or response as text for people: messages as `role: content` paragraphs."""
    if isinstance(value, str):
        return value
    return "\n\n".join(f"{m['role']}: {m['content']}{_calls(m)}" for m in value)


def _calls(message: Message) -> str:
    calls = message.get("tool_calls")
    return json.dumps(calls, sort_keys=True, default=str) if calls else ""


def _field(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None:
        present = ", ".join(str(k) for k in row) or "nothing"
        raise BadRow(f"missing field {name}", f"the row has {shorten(present)}")
    return value


def _is_messages(value: Any) -> bool:
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
                raise BadRow("a message is not text", f"{where} holds a part of type {kind}")
        return "".join(parts)
    raise BadRow("wrong type", f"{where} is {type(value).__name__}, expected text")


def read_messages(value: Any, where: str, role_key: str = "role", content_key: str = "content") -> Turns:
    """Messages with known role names and text contents; other keys than role, content, tool_calls, name are left out.

    A message may lack content only when it has tool_calls; its content is then "".
    """
    if not _is_messages(value):
        raise BadRow("wrong type", f"{where} is {type(value).__name__}, expected a list of messages")
    turns: Turns = []
    for i, message in enumerate(value):
        place = f"{where}[{i}]"
        role = message.get(role_key)
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise BadRow("unknown role", f"{place} has {role_key} {role!r}")
        calls = message.get("tool_calls")
        content = message.get(content_key)
        if content is None and not calls:
            raise BadRow("missing field " + content_key, f"{place} has {shorten(', '.join(map(str, message)))}")
        turn: Message = {"role": ROLES[role.lower()], "content": _content("" if content is None else content, place)}
        if calls:
            turn["tool_calls"] = calls
        if isinstance(message.get("name"), str):
            turn["name"] = message["name"]
        turns.append(turn)
    return turns


def _is_empty(value: str | Turns) -> bool:
    return not response_text(value).strip()


def check_pair(pair: Pair) -> Pair:
    """The rules that hold in every format.

    Raises:
        BadRow: an empty prompt or response, equal responses, text that UTF-8 cannot hold.
    """
    for name in ("chosen", "rejected"):
        if _is_empty(getattr(pair, name)):
            raise BadRow(f"empty response: {name}", "nothing but white space")
    if not pair.prompt or not render(pair.prompt).strip():
        raise BadRow("empty prompt", "nothing but white space")
    if pair.chosen == pair.rejected:
        raise BadRow("chosen equals rejected", shorten(response_text(pair.chosen)))
    for name in ("prompt", "chosen", "rejected"):
        try:
            render(getattr(pair, name)).encode()
        except UnicodeEncodeError as error:
            raise BadRow("undecodable text", f"{name}: a lone surrogate at character {error.start}") from None
    if response_text(pair.chosen).split() == response_text(pair.rejected).split():
        pair.notes.append(("responses differ in white space only", shorten(response_text(pair.chosen))))
    for name in ("chosen", "rejected"):
        value = getattr(pair, name)
        if HUMAN_MARK in value if isinstance(value, str) else any(m["role"] == "user" for m in value):
            pair.notes.append(("a response holds the user's turns", f"{name}: the loss would train on them"))
    return pair


def _common_prefix(a: str, b: str) -> int:
    """Length of the longest common prefix, by bisection: comparing slices is fast, characters are not."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def split_implicit_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two whole texts that share a prompt to (prompt, chosen, rejected).

    hh-rlhf: the prompt ends with the last `Assistant:` that both share, so that an answer's first words stay in the
    answer even where both answers begin alike. Without that mark the prompt is the common prefix, cut back to a word's
    start (the space belongs to the response, as in TRL's `extract_prompt`).
    """
    if chosen == rejected:
        raise BadRow("chosen equals rejected", shorten(chosen))
    common = _common_prefix(chosen, rejected)
    marks = list(ASSISTANT_MARK.finditer(chosen, 0, common))
    if marks:
        cut = marks[-1].end()
    else:
        cut = common
        while cut > 0 and not (chosen[cut - 1 : cut].isspace()):
            cut -= 1
        if cut > 0 and chosen[cut - 1] == " ":
            cut -= 1
    if cut == 0:
        raise BadRow("no shared prompt", f"chosen begins with {shorten(chosen, 40)!r}")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_implicit_messages(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Two whole conversations to their common first turns and the rest of each (TRL's implicit prompt)."""
    if chosen == rejected:
        raise BadRow("chosen equals rejected", shorten(response_text(chosen)))
    common = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        common += 1
    if common == 0:
        raise BadRow("no shared prompt", "the first turns differ")
    return chosen[:common], chosen[common:], rejected[common:]


def _parse_chat_cell(value: Any) -> Any:
    """A csv cell that holds messages as JSON; anything else stays what it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            parsed = json.loads(value)
        except ValueError:
            return value
        return parsed if _is_messages(parsed) else value
    return value


def _extra(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template also takes: `tools` as JSON text (TRL reads it so), `chat_template_kwargs`."""
    extra: dict[str, Any] = {}
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            json.loads(tools)
        except ValueError as error:
            raise BadRow("tools is not JSON", shorten(error)) from None
        extra["tools"] = tools
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


def from_trl(row: Mapping[str, Any]) -> Pair:
    """TRL's preference formats, explicit or implicit prompt, text or messages.

    Also read: a text prompt beside whole conversations (ultrafeedback_binarized), a text prompt beside assistant
    messages, a list of messages beside text responses.
    """
    chosen, rejected = (_parse_chat_cell(_field(row, name)) for name in ("chosen", "rejected"))
    prompt = _parse_chat_cell(row.get("prompt"))
    for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if value is not None and not isinstance(value, str) and not _is_messages(value):
            raise BadRow("wrong type", f"{name} is {type(value).__name__}, expected text or a list of messages")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRow("wrong type", "one response is text, the other messages")
    extra = _extra(row)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            for name, value in (("chosen", chosen), ("rejected", rejected)):
                if not value.strip():
                    raise BadRow(f"empty response: {name}", "nothing but white space")
            return check_pair(Pair(*split_implicit_text(chosen, rejected), extra=extra))
        if isinstance(prompt, str):
            pair = Pair(prompt, chosen, rejected, extra)
            if len(prompt) >= 20 and chosen.startswith(prompt) and rejected.startswith(prompt):
                pair.notes.append(("both responses repeat the prompt", "drop the prompt column to read it as implicit"))
            return check_pair(pair)
        answers = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        return check_pair(Pair(read_messages(prompt, "prompt"), answers[0], answers[1], extra))
    chosen_turns, rejected_turns = read_messages(chosen, "chosen"), read_messages(rejected, "rejected")
    for name, turns in (("chosen", chosen_turns), ("rejected", rejected_turns)):
        if not turns or _is_empty(turns[-1:]):
            raise BadRow(f"empty response: {name}", "no turn, or nothing but white space in the last")
    if prompt is None or isinstance(prompt, str):
        if chosen_turns[0]["role"] == "assistant" and isinstance(prompt, str):
            return check_pair(Pair([{"role": "user", "content": prompt}], chosen_turns, rejected_turns, extra))
        before, after_chosen, after_rejected = split_implicit_messages(chosen_turns, rejected_turns)
        pair = Pair(before, after_chosen, after_rejected, extra)
        if isinstance(prompt, str) and prompt not in [m["content"] for m in before]:
            pair.notes.append(("the prompt column is not in the conversation", shorten(prompt)))
        return check_pair(pair)
    prompt_turns = read_messages(prompt, "prompt")
    n = len(prompt_turns)
    if n and chosen_turns[:n] == prompt_turns and rejected_turns[:n] == prompt_turns:
        chosen_turns, rejected_turns = chosen_turns[n:], rejected_turns[n:]
    return check_pair(Pair(prompt_turns, chosen_turns, rejected_turns, extra))


def _sharegpt_keys(message: Mapping[str, Any]) -> tuple[str, str]:
    return ("from", "value") if "from" in message or "value" in message else ("role", "content")


def _sharegpt_answer(value: Any, name: str) -> Turns:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    messages = [value] if isinstance(value, Mapping) else value
    if not _is_messages(messages) or not messages:
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
        _field(row, "conversations")
    conversation = row[name]
    if not _is_messages(conversation):
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
    chosen, rejected = (_sharegpt_answer(_field(row, side), side) for side in ("chosen", "rejected"))
    return check_pair(Pair(prompt, chosen, rejected, _extra(row)))


FORMATS: dict[str, Callable[[Mapping[str, Any]], Pair]] = {"trl": from_trl, "sharegpt": from_sharegpt}


def detect_format(row: Mapping[str, Any]) -> str:
    """The format of a row: sharegpt where it has conversations (or messages) and no prompt, else trl."""
    return "sharegpt" if ("conversations" in row or "messages" in row) and "prompt" not in row else "trl"
