"""Prompt sets: jsonl files of fixed questions that every checkpoint answers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_diag.config import PROMPT_SETS
from dpo_diag.errors import DiagError

Message = dict[str, str]
ROLES = ("system", "user", "assistant", "tool", "developer")
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
        """The row as it would stand in a file; absent fields are left out."""
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
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DiagError("messages is no list of turns", where=where, got=type(value).__name__)
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise DiagError(
                "a message needs a role and a text content", where=f"{where}, message {i + 1}", got=repr(turn)[:80]
            )
        if turn.get("role") not in ROLES:
            raise DiagError(
                "unknown role",
                where=f"{where}, message {i + 1}",
                got=repr(turn.get("role")),
                expected=f"one of {ROLES}",
            )
        turns.append({"role": str(turn["role"]), "content": turn["content"]})
    if turns[-1]["role"] == "assistant":
        raise DiagError(
            "the last message is the assistant's: nothing is left to answer", where=where, hint="remove that turn"
        )
    return tuple(turns)


def to_prompt(row: Mapping[str, Any] | Prompt, where: str = "a prompt") -> Prompt:
    """One row as a Prompt; raises DiagError naming `where` and the field that does not fit."""
    if isinstance(row, Prompt):
        return row
    if not isinstance(row, Mapping):
        raise DiagError("a prompt is a JSON object", where=where, got=type(row).__name__)
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
        raise DiagError("prompt is no text or empty", where=where, got=repr(text)[:80])
    tags = row.get("tags") or ()
    if isinstance(tags, str) or not all(isinstance(tag, str) and tag for tag in tags):
        raise DiagError("tags is no list of words", where=where, got=repr(row.get("tags"))[:80])
    for name in ("reference", "checker"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise DiagError(f"{name} is no text", where=where, got=repr(row[name])[:80])
    return Prompt(
        id=str(identity),
        prompt=text,
        messages=None if chat is None else _messages(chat, where),
        tags=tuple(dict.fromkeys(tags)),
        reference=row.get("reference"),
        checker=row.get("checker"),
        extra={k: v for k, v in row.items() if k not in _OWN},
    )


def to_prompts(rows: Iterable[Mapping[str, Any] | Prompt], source: str = "prompts") -> list[Prompt]:
    """Rows as Prompts in their order; an id that occurs twice is a DiagError."""
    prompts = [to_prompt(row, f"{source}, row {i}") for i, row in enumerate(rows, 1)]
    _unique(prompts, [f"{source}, row {i}" for i in range(1, len(prompts) + 1)])
    return prompts


def _unique(prompts: Sequence[Prompt], places: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for prompt, place in zip(prompts, places, strict=True):
        if prompt.id in seen:
            raise DiagError(f"id {prompt.id!r} occurs twice", where=place, got=f"first at {seen[prompt.id]}")
        seen[prompt.id] = place


def shipped_prompt_sets() -> dict[str, Path]:
    """name -> file of the prompt sets that come with the package."""
    return {path.stem: path for path in sorted(PROMPT_SETS.glob("*.jsonl"))}


def load_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """A prompt set from a jsonl file, in the order of its lines; blank lines are passed over.

    Args:
        path: a file, or the name of a shipped set (`shipped_prompt_sets`).

    Raises:
        DiagError: no such file, a line that is no JSON object or does not fit (naming file and line), no prompt at all.
    """
    file = Path(path)
    if not file.is_file():
        shipped = shipped_prompt_sets()
        if str(path) not in shipped:
            raise DiagError(
                "no such prompt file", where=path, hint=f"name a jsonl file or a shipped set: {', '.join(shipped)}"
            )
        file = shipped[str(path)]
    prompts, places = [], []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DiagError("the prompt file is not UTF-8", where=file, got=error, hint="save it as UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DiagError(
                "not a JSON object", where=place, got=error, expected='one per line, e.g. {"id": "a", "prompt": "Hi"}'
            ) from error
        prompts.append(to_prompt(row, place))
        places.append(place)
    if not prompts:
        raise DiagError("the prompt file is empty", where=file, expected="one JSON object per line")
    _unique(prompts, places)
    return prompts


def prompts_hash(prompts: Iterable[Mapping[str, Any] | Prompt]) -> str:
    """16 hex digits over ids, texts, tags, references and checkers in their order: the same set, the same hash."""
    rows = [to_prompt(p).to_dict() for p in prompts]
    document = json.dumps(rows, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(document.encode()).hexdigest()[:16]
