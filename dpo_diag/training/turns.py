"""Which tokens of a conversation are the assistant's: every turn of it, or the last one.

From the chat template's generation markers where it has them. Else from common prefixes: a turn begins where the
conversation before it, with the generation prompt, ends in the whole, and ends where the conversation up to it does.
Templates that show a turn otherwise once others follow (they strip earlier thinking blocks, say) give no such prefix:
there the turn is what changes with its content, and what a template puts behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from trl.data_utils import maybe_convert_to_chatml

from dpo_diag.data.tokens import shared_prefix
from dpo_diag.data.trained_tokens import TrainedIds
from dpo_diag.documents import parse_json
from dpo_diag.records.conversation import content_text, is_conversation

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
UNTRAINED = "untrained_turns"
"""Column of a prepared row: turns of the assistant that their own weight takes out of the loss."""
_STAND_IN = "\ue000"
"""Stands in for a content: no text holds it."""

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, bool], str]


def is_counted(message: Mapping[str, Any]) -> bool:
    """Whether a turn is the assistant's and to be trained: OpenAI's files say by `weight: 0` that it is not."""
    return message.get("role") == "assistant" and message.get("weight") != 0


def has_markers(tokenizer: Any, **options: Any) -> bool:
    """Whether the chat template that these messages get marks what the assistant generates."""
    template = tokenizer.get_chat_template(options.get("chat_template"), options.get("tools"))
    return _MARKERS.search(template) is not None


def assistant_tokens(
    tokenizer: Any, messages: Messages, first: int = 0, **options: Any
) -> tuple[list[int], list[int] | None]:
    """Token ids of a conversation, and 1 for those of the assistant's turns that count (`is_counted`), 0 for others;
    None for the latter where the template does not tell which they are.

    Args:
        first: turns before this message do not count.
        options: of `apply_chat_template`: chat_template, tools and what the template takes.

    Raises:
        Exception: what the template refuses these messages with.
    """
    messages = list(messages)
    if tokenizer.is_fast and has_markers(tokenizer, **options):  # others know no places of characters
        found = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
        )
        ids, mask = list(found["input_ids"]), list(found["assistant_masks"])
        marked = list(TrainedIds(ids, [bool(m) for m in mask]).spans())
        turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        left_out = [i for i in turns if i < first or not is_counted(messages[i])]
        if marked and (not left_out or len(marked) == len(turns)):
            for i, (begin, end) in zip(turns, marked, strict=False):
                if i in left_out:
                    mask[begin:end] = [0] * (end - begin)
            return ids, mask

    def render(some: Messages, prompt: bool) -> str:
        text = tokenizer.apply_chat_template(list(some), add_generation_prompt=prompt, tokenize=False, **options)
        return str(text)

    whole = render(messages, False)
    try:
        spans = assistant_spans(render, messages, whole, first)
    except (TemplateError, TypeError, ValueError):
        spans = None  # it refuses a part of what it takes as a whole: roles must alternate, say
    if not tokenizer.is_fast:
        return _by_prefix(tokenizer, whole, spans)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = list(encoded["input_ids"]), encoded["offset_mapping"]
    if spans is None:
        return ids, None
    # A token that merges with what stands before a turn is the turn's: there tokens begin to differ.
    return ids, [int(any(b < end and e > begin for begin, end in spans)) for b, e in places]


def _by_prefix(tokenizer: Any, whole: str, spans: list[tuple[int, int]] | None) -> tuple[list[int], list[int] | None]:
    """The same by the tokens that the texts up to a place share with the whole."""

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    ids = ids_of(whole)
    if spans is None:
        return ids, None
    mask = [0] * len(ids)
    for begin, end in spans:
        places = [shared_prefix(ids_of(whole[:at]), ids) for at in (begin, end)]
        mask[places[0] : places[1]] = [1] * len(mask[places[0] : places[1]])
    return ids, mask


def assistant_spans(render: Render, messages: Messages, whole: str, first: int = 0) -> list[tuple[int, int]] | None:
    """(begin, end) in the rendered conversation of each turn of the assistant that counts, its end token included; None
    where the template does not tell.

    Args:
        render: messages, and whether the generation prompt follows -> text.
        whole: all of them rendered.
        first: turns before this message do not count.
    """
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if i < first or not is_counted(message):
            continue
        before = render(messages[:i], False) if i else ""
        head, upto = render(messages[:i], True) if i else "", render(messages[: i + 1], False)
        begin, end = shared_prefix(head, whole), len(upto)
        if begin < len(before) or not whole.startswith(upto):
            found = _by_content(render, messages, i, whole, head[shared_prefix(before, head) :])
            if found is None:
                return None
            begin, end = found
        if end <= begin or (spans and begin < spans[-1][1]):
            return None
        spans.append((begin, end))
    return spans


def _by_content(render: Render, messages: Messages, i: int, whole: str, prompt: str) -> tuple[int, int] | None:
    """Where a turn stands, from what changes with its content; `prompt`: the generation prompt before it."""
    content = messages[i].get("content")
    stand_in: Any = [{"type": "text", "text": _STAND_IN}] if isinstance(content, (list, tuple)) else _STAND_IN
    other = {**messages[i], "content": stand_in}
    changed = render([*messages[:i], other, *messages[i + 1 :]], False)
    begin, behind = shared_prefix(whole, changed), shared_prefix(whole[::-1], changed[::-1])
    end = len(whole) - behind
    shown = whole[begin:end]
    if changed.count(_STAND_IN) != 1 or not shown or shown not in content_text(content):
        return None  # shown twice, or in other words
    alone, replaced = render(messages[: i + 1], False), render([*messages[:i], other], False)
    tail = alone[len(alone) - shared_prefix(alone[::-1], replaced[::-1]) :]
    end += shared_prefix(tail, whole[end:])
    # Between the generation prompt and the content may stand what the assistant thought.
    at = whole.rfind(prompt, 0, begin) if prompt else -1
    between = whole[at + len(prompt) : begin] if at >= 0 else ""
    own = {k: v for k, v in messages[i].items() if k not in ("role", "content") and isinstance(v, str) and v.strip()}
    return (begin - len(between) if any(text.strip() in between for text in own.values()) else begin), end


@dataclass
class TokenisedTurns:
    """Maps a row of messages to its token ids, its labels, and `completion_mask`: 1 for what the assistant wrote and is
    to be trained, -1 where the template does not tell. Such a row has no labels, so that TRL leaves it out, but where
    everything counts.

    Args:
        tokenizer, chat_template: of the trainer.
        loss_on: one of `config_sft.LOSS_ON`.
    """

    tokenizer: Any
    chat_template: str | None
    loss_on: str

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        row = maybe_convert_to_chatml(dict(row))
        prompt, messages = list(row.get("prompt") or []), list(row.get("messages") or [])
        messages = messages or [*prompt, *row["completion"]]
        last = max((i for i, m in enumerate(messages) if m.get("role") == "assistant"), default=0)
        first = 0 if self.loss_on != "last" else len(prompt) or last
        tools = row.get("tools")
        options = {"tools": parse_json(tools) if isinstance(tools, str) else tools}
        options |= {"chat_template": self.chat_template, **(row.get("chat_template_kwargs") or {})}
        ids, mask = assistant_tokens(self.tokenizer, messages, first, **options)
        mask = [-1] * len(ids) if mask is None else mask
        labels = [i if self.loss_on == "all" or own == 1 else -100 for i, own in zip(ids, mask, strict=True)]
        written = [message for message in messages[first:] if message.get("role") == "assistant"]
        untrained = 0 if self.loss_on == "all" else sum(not is_counted(message) for message in written)
        return {"input_ids": ids, "labels": labels, "completion_mask": mask, UNTRAINED: untrained}


def is_talk(row: Any) -> bool:
    """Whether a row holds messages: a conversation, or a prompt and a completion of them."""
    if not isinstance(row, Mapping) or "input_ids" in row:
        return False
    if any(is_conversation(row.get(name)) for name in ("messages", "conversations")):
        return True
    return is_conversation(row.get("prompt")) and is_conversation(row.get("completion"))
