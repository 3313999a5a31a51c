"""From the parts that a form finds in a row to a pair: texts and messages brought to one kind, the prompt split off."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpo_diag.records.conversation import canonical_option
from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.cells import CHATML_END, MESSAGE_LISTS, ROLE_KEYS, decoded, is_chat, keys_of, markup
from dpo_diag.rows.implicit import Rules, split_messages, split_text
from dpo_diag.rows.pair import WHOLE, Pair, Turns, check_pair, is_empty, is_messages, read_messages, shorten

TEXT_KEYS = ("text", "content", "response", "answer", "completion", "output", "generated_text", "full_text")
"""Under which an object holds an answer's text, in this order."""


@dataclass
class Parts:
    """What a form found in a row, as it stands there.

    Attributes:
        prompt: text or messages; None where chosen and rejected both begin with it.
        system: the text of a system column; None or blank for none.
        before: earlier turns of the conversation, for a prompt of text.
        chat: a prompt of text is a user's turn and the answers are the assistant's; else they are plain text.
        system_wins: a system column replaces a system turn, as LLaMA-Factory defines it; else both are an error.
        extra: what the chat template takes.
        alone: chosen is the row's only answer (SFT), `rejected` counts for nothing; without a prompt it is the whole.
    """

    chosen: Any
    rejected: Any
    prompt: Any = None
    system: Any = None
    before: Turns = field(default_factory=list)
    chat: bool = False
    system_wins: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    alone: bool = False


def last_answer(turns: str | Turns, name: str) -> tuple[Turns, Turns]:
    """(turns up to the last question, what answers it: several turns where tools were called).

    Raises:
        BadRow: no messages, or another's turn is the last.
    """
    if isinstance(turns, str) or not turns or turns[-1]["role"] != "assistant":
        raise BadRow("the conversation does not end with an answer", f"{name} has another's turn, or none, as its last")
    last = len(turns)
    while last and turns[last - 1]["role"] != "user":
        last -= 1
    return turns[:last], turns[last:]


def answer(value: Any, name: str) -> tuple[str | Turns, Any]:
    """(text or messages, tools) of a response or prompt, however its cell wraps it.

    Raises:
        BadRow: it is neither.
    """
    value, tools = decoded(value), None
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        return value, None
    if isinstance(value, Mapping):
        wrapped = next((value[key] for key in MESSAGE_LISTS if is_messages(value.get(key))), None)
        if wrapped is not None:
            value, tools = wrapped, value.get("tools")
        elif any(key in value for key in ROLE_KEYS):
            value = [value]
        else:
            text = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)), None)
            if text is None:
                raise BadRow("wrong type", f"{name} is an object of {shorten(', '.join(map(str, value)))}")
            return text, None
    if is_messages(value):
        return read_messages(value, name, *keys_of(value)), tools
    hint = "write numbers as text" if isinstance(value, (int, float)) else ""
    raise BadRow("wrong type", f"{name} is {type(value).__name__}, expected text or a list of messages", hint)


def assemble(parts: Parts, rules: Rules) -> Pair:
    """The pair of a row's parts.

    Raises:
        BadRow: the parts make none; it says why.
    """
    chosen, chosen_tools = answer(parts.chosen, "chosen")
    rejected, rejected_tools = ("", None) if parts.alone else answer(parts.rejected, "rejected")
    prompt, prompt_tools = (None, None) if parts.prompt is None else answer(parts.prompt, "prompt")
    extra = dict(parts.extra)
    for tools in (chosen_tools, rejected_tools, prompt_tools):
        if tools:
            if "tools" in extra and canonical_option(extra["tools"]) != canonical_option(tools):
                raise BadRow("chosen and rejected have other tools", "one prompt has one list of tools")
            extra.setdefault("tools", tools if isinstance(tools, str) else json.dumps(list(tools), default=str))
    if parts.alone:
        pair = _of_one(parts, prompt, chosen)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        pair = _of_texts(parts, prompt, chosen, rejected, rules)
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("wrong type", "one response is text, the other messages")
    else:
        pair = _of_messages(parts, prompt, chosen, rejected)
    pair.extra = extra
    if not isinstance(pair.prompt, str):
        pair.prompt = _with_system(pair.prompt, parts)
        for name in pair.sides:
            turns = getattr(pair, name)
            if turns and turns[0]["role"] not in ("assistant", "tool"):
                hint = "data.columns.prompt=false where chosen and rejected are whole conversations"
                raise BadRow("the response is not the assistant's", f"{name} is from {shorten(turns[0])}", hint)
    _check_markup(pair)
    return check_pair(pair)


def _check_markup(pair: Pair) -> None:
    """A model must not learn to write a printed list of messages, or a user's turn."""
    for name in ("prompt", *pair.sides):
        value = getattr(pair, name)
        for text in [value] if isinstance(value, str) else [m["content"] for m in value]:
            if isinstance(text, str) and (found := markup(text, response=name != "prompt" and pair.kind != WHOLE)):
                hint = 'write messages as JSON, [{"role": ..., "content": ...}], or as plain text'
                raise BadRow("markup where text belongs", f"{name} begins with {shorten(found, 40)}", hint)


def _of_one(parts: Parts, prompt: str | Turns | None, response: str | Turns) -> Pair:
    """The pair of a row of one answer: text beside text stays text, else both are messages."""
    if prompt is None and not isinstance(response, str):
        prompt, response = last_answer(response, "the text")
    if prompt is None or (isinstance(prompt, str) and isinstance(response, str) and not parts.chat):
        if prompt is not None and not prompt.strip():
            raise BadRow("empty prompt", "nothing but white space")
        return Pair(prompt or "", response, alone=True)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt.strip() else []
    if isinstance(response, str):
        response = [{"role": "assistant", "content": CHATML_END.sub("", response)}] if response.strip() else []
    elif response[: len(prompt)] == prompt:
        response = response[len(prompt) :]
    if not response or is_empty(response[-1:]):
        raise BadRow("empty response", "no turn, or nothing but white space in the last")
    return Pair([*parts.before, *prompt] if prompt else [], response, alone=True)


def _of_texts(parts: Parts, prompt: str | Turns | None, chosen: str, rejected: str, rules: Rules) -> Pair:
    if prompt is None:
        for name, value in (("chosen", chosen), ("rejected", rejected)):
            if not value.strip():
                raise BadRow(f"empty response: {name}", "nothing but white space")
        if parts.chat:
            raise BadRow("a system text beside whole texts", "chosen and rejected hold their prompt as text",
                         "write them as messages, or data.columns.system=false leaves it out")  # fmt: skip
        return Pair(*split_text(chosen, rejected, rules))
    if isinstance(prompt, str):
        if not parts.chat:
            pair = Pair(prompt, chosen, rejected)
            if len(prompt) >= 20 and chosen.startswith(prompt) and rejected.startswith(prompt):
                pair.notes.append(("both responses repeat the prompt", "data.columns.prompt=false takes it from them"))
            return pair
        # An empty question stays empty, for the rule that holds for all.
        prompt = [{"role": "user", "content": prompt}] if prompt.strip() else []
    turns: Callable[[str], Turns] = lambda text: [{"role": "assistant", "content": CHATML_END.sub("", text)}]  # noqa: E731
    return Pair([*parts.before, *prompt] if prompt else [], turns(chosen), turns(rejected))


def _of_messages(parts: Parts, prompt: str | Turns | None, chosen: Turns, rejected: Turns) -> Pair:
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or is_empty(turns[-1:]):
            raise BadRow(f"empty response: {name}", "no turn, or nothing but white space in the last")
    if isinstance(prompt, str) and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        asked: Turns = [{"role": "user", "content": prompt}] if prompt.strip() else []
        return Pair([*parts.before, *asked] if asked else [], chosen, rejected)
    if prompt is None or isinstance(prompt, str):
        pair = Pair(*split_messages(chosen, rejected))
        if isinstance(prompt, str) and prompt not in [m["content"] for m in pair.prompt]:  # type: ignore[index]
            pair.notes.append(("the prompt column is not in the conversation", shorten(prompt)))
        return pair
    n = len(prompt)
    if n and chosen[:n] == prompt and rejected[:n] == prompt:
        chosen, rejected = chosen[n:], rejected[n:]
    return Pair(prompt, chosen, rejected)


def _with_system(turns: Turns, parts: Parts) -> Turns:
    system = parts.system
    if system is None or system == "":
        return turns
    if not isinstance(system, str):
        raise BadRow(
            "wrong type", f"system is {type(system).__name__}, expected text (data.columns.system=false: none)"
        )
    if not system.strip() or not turns:
        return turns
    first = turns[0]
    if first["role"] in ("system", "developer"):
        if first["content"].strip() == system.strip():
            return turns
        if not parts.system_wins:
            said = f"the column says {shorten(system, 40)!r}, the conversation {shorten(first['content'], 40)!r}"
            raise BadRow("two system texts", said, "data.columns.system=false keeps the conversation's")
        turns = [m for m in turns if m["role"] not in ("system", "developer")]
    return [{"role": "system", "content": system}, *turns]


def decoded_chat(value: Any) -> Any:
    """A cell that holds messages, printed or not, as the list of messages; anything else as it is."""
    found = decoded(value)
    if isinstance(found, Mapping):
        inner = next((found[key] for key in MESSAGE_LISTS if is_chat(found.get(key))), None)
        return inner if inner is not None else [found] if is_chat([found]) else value
    return found if is_chat(found) else value
