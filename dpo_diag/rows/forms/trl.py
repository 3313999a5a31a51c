"""TRL's preference formats: explicit or implicit prompt, text or messages; hh-rlhf's texts that share a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dpo_diag.records.conversation import response_text
from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.forms import DEFAULT, FORMATS, RowFormat
from dpo_diag.rows.pair import (
    Pair,
    Turns,
    check_pair,
    field_of,
    is_empty,
    is_messages,
    read_messages,
    shorten,
    template_options,
)

ASSISTANT_MARK = re.compile(r"\n\nAssistant:")


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
        return parsed if is_messages(parsed) else value
    return value


def from_trl(row: Mapping[str, Any]) -> Pair:
    """TRL's preference formats, explicit or implicit prompt, text or messages.

    Also read: a text prompt beside whole conversations (ultrafeedback_binarized), a text prompt beside assistant
    messages, a list of messages beside text responses.
    """
    chosen, rejected = (_parse_chat_cell(field_of(row, name)) for name in ("chosen", "rejected"))
    prompt = _parse_chat_cell(row.get("prompt"))
    for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if value is not None and not isinstance(value, str) and not is_messages(value):
            raise BadRow("wrong type", f"{name} is {type(value).__name__}, expected text or a list of messages")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRow("wrong type", "one response is text, the other messages")
    extra = template_options(row)
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
        if not turns or is_empty(turns[-1:]):
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


# TRL's is what is read where no other format claims the row, so it claims none itself.
FORMATS.add(DEFAULT, RowFormat(claims=lambda row: False, read=from_trl))
