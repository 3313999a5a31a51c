"""Prompt sets: files of fixed questions that every checkpoint answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_diag.config import PROMPT_SETS
from dpo_diag.errors import DiagError
from dpo_diag.records.conversation import Message
from dpo_diag.records.pair_id import content_hash
from dpo_diag.records.row_files import BadRow, read_rows
from dpo_diag.rows.pair import read_messages

_OWN = ("id", "prompt", "messages", "tags", "reference", "checker")


@dataclass(frozen=True)
class Prompt:
    """One fixed question.

    Attributes:
        id: unique within its set; rows of outputs/ join on it.
        prompt: plain text that the model continues; None for a chat.
        messages: a chat for the tokenizer's template, ending with the turn to answer; None for plain text.
        tags: what kind of prompt it is: like_training, paraphrased, out_of_distribution, must_refuse, format, ...
        reference: a reference answer, or None.
        checker: name of a checker (`dpo_diag.inference.checkers`), or None.
        extra: what else the row holds, e.g. the checker's needs (`db`) or a probe's pairing (`probe`, `claim`).
    """

    id: str
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    tags: tuple[str, ...] = ()
    reference: str | None = None
    checker: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The row as it would be in a file; absent fields are left out."""
        row: dict[str, Any] = {"id": self.id}
        if self.prompt is not None:
            row["prompt"] = self.prompt
        if self.messages is not None:
            row["messages"] = [dict(m) for m in self.messages]
        if self.tags:
            row["tags"] = list(self.tags)
        row |= {k: v for k in ("reference", "checker") if (v := getattr(self, k)) is not None}
        return row | dict(self.extra)


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    try:
        turns = read_messages(value, "messages")
    except BadRow as bad:
        raise DiagError(bad.why, where=where, got=bad.detail) from None
    if not turns:
        raise DiagError("messages is empty", where=where)
    if turns[-1]["role"] == "assistant":
        raise DiagError(
            "the last message is the assistant's: nothing is left to answer", where=where, hint="remove that turn"
        )
    return tuple(turns)


def to_prompt(row: Mapping[str, Any] | Prompt, where: str = "a prompt") -> Prompt:
    """One row as a Prompt; raises DiagError naming `where` and the field that does not fit."""
    if isinstance(row, Prompt):
        return row
    identity = row.get("id")
    if not isinstance(identity, (str, int)) or isinstance(identity, bool) or str(identity) == "":
        raise DiagError("id is missing", where=where, got=repr(identity), hint="give every prompt a unique id")
    text, chat = row.get("prompt"), row.get("messages")
    if isinstance(text, Sequence) and not isinstance(text, str):
        # TRL's conversational datasets hold the messages under "prompt".
        text, chat = None, text
    if (text is None) == (chat is None):
        raise DiagError("a prompt has either prompt or messages", where=where, got="both" if text else "neither")
    if text is not None and (not isinstance(text, str) or text == ""):
        raise DiagError("prompt is not text, or empty", where=where, got=repr(text)[:80])
    tags = row.get("tags") or ()
    if not isinstance(tags, (list, tuple)) or not all(isinstance(tag, str) and tag for tag in tags):
        raise DiagError("tags is not a list of words", where=where, got=repr(row.get("tags"))[:80])
    for name in ("reference", "checker"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise DiagError(f"{name} is not text", where=where, got=repr(row[name])[:80])
    return Prompt(
        id=str(identity),
        prompt=text,
        messages=None if chat is None else _messages(chat, where),
        tags=tuple(dict.fromkeys(tags)),
        reference=row.get("reference"),
        checker=row.get("checker"),
        extra={k: v for k, v in row.items() if k not in _OWN},
    )


def to_prompts(rows: Iterable[Mapping[str, Any] | Prompt]) -> list[Prompt]:
    """Rows as Prompts in their order; an id that occurs twice is a DiagError."""
    return _unique((f"prompts, row {i}", row) for i, row in enumerate(rows, 1))


def _unique(rows: Iterable[tuple[str, Mapping[str, Any] | Prompt]]) -> list[Prompt]:
    """Prompts of (place, row)."""
    places: dict[str, str] = {}
    prompts = []
    for place, row in rows:
        prompt = to_prompt(row, place)
        if prompt.id in places:
            raise DiagError(f"id {prompt.id!r} occurs twice", where=place, got=f"first at {places[prompt.id]}")
        places[prompt.id] = place
        prompts.append(prompt)
    return prompts


def shipped_prompt_sets() -> dict[str, Path]:
    """name -> file of the prompt sets that come with the package."""
    return {path.stem: path for path in sorted(PROMPT_SETS.glob("*.jsonl"))}


def load_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """A prompt set from a file, in its order.

    Args:
        path: a file of rows (jsonl, or another that `records.row_files` reads), or the name of a shipped set
            (`shipped_prompt_sets`).

    Raises:
        DiagError: no such file, a row that cannot be read or does not fit (naming file and line), no prompt at all.
    """
    file = Path(path)
    if not file.is_file():
        shipped = shipped_prompt_sets()
        if str(path) not in shipped:
            raise DiagError(
                "no such prompt file", where=path, hint=f"name a jsonl file or a shipped set: {', '.join(shipped)}"
            )
        file = shipped[str(path)]
    prompts = _unique((f"{file}, line {number}", _readable(row, file, number)) for number, row in read_rows(file))
    if not prompts:
        raise DiagError("the prompt file is empty", where=file, expected="one JSON object per line")
    return prompts


def _readable(row: Mapping[str, Any] | BadRow, file: Path, number: int) -> Mapping[str, Any]:
    if isinstance(row, BadRow):
        expected = 'one object per line, e.g. {"id": "a", "prompt": "Hi"}'
        raise DiagError("not a prompt", where=f"{file}, line {number}", got=row, expected=expected)
    return row


def prompts_hash(prompts: Iterable[Mapping[str, Any] | Prompt]) -> str:
    """16 hex digits over ids, texts, tags, references and checkers in their order: the same set, the same hash."""
    return content_hash([to_prompt(p).to_dict() for p in prompts])
