"""Which columns hold the prompt, the system text and the turns before: what forms with named sides share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.cells import MESSAGE_LISTS, printed
from dpo_diag.rows.columns import Columns, simple
from dpo_diag.rows.implicit import ASSISTANT_MARK
from dpo_diag.rows.pair import Turns, field_of, shorten
from dpo_diag.rows.parts import Parts, answer, decoded_chat

TRL_PROMPT = ("prompt", "text_prompt", "prompt_text")
"""Names of a prompt that stays text beside answers of text."""
SYSTEM_NAMES = (
    "system", "system_prompt", "system_message", "system_msg", "system_text", "system_instruction",
    "sys_prompt", "sys_msg",
)  # fmt: skip
ASKED = ("instruction", "instructions", "question", "query", "user_prompt", "user", "problem", "request", "post")
ADDED = ("input", "context")
"""Columns that add to the question: an article, a table's schema. Without a question they are the question."""
AS_TURN = ", as the user's turn"
PROMPT_NAMES = ("prompt", *ASKED, *ADDED)


@dataclass(frozen=True)
class Prompt:
    """Where a file's prompt is.

    Attributes:
        names: columns that are joined, line under line; none where chosen and rejected begin with the prompt.
        chat: a prompt of text is a user's turn.
        system, history: columns with the system text and with earlier turns; None for none.
        rivals: columns that could as well be the prompt and hold other texts: the user must say which is.
    """

    names: tuple[str, ...]
    chat: bool
    system: str | None = None
    history: str | None = None
    rivals: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The first column's simple name; "" for none."""
        return simple(self.names[0]) if self.names else ""

    @property
    def columns(self) -> set[str]:
        return {*self.names, *(name for name in (self.system, self.history) if name)}

    def says(self) -> str:
        """What is the prompt, in a few words."""
        first = f"{self.system} as the system's turn, " if self.system else ""
        if not self.names:
            return f"{first}prompt = what both answers begin with"
        said = (
            self.names[0] if self.name in TRL_PROMPT and len(self.names) == 1 else f"prompt = {' + '.join(self.names)}"
        )
        return first + said + (AS_TURN if self.chat and self.name not in MESSAGE_LISTS else "")

    def of_a_chat(self, columns: Columns) -> Prompt:
        """For sets of questions to a chat model: a prompt of text is a user's turn unless it writes turns itself."""
        texts = [value for name in self.names[:1] for value in columns.values(name) if isinstance(value, str)]
        return self if not texts or any(ASSISTANT_MARK.search(text) for text in texts) else replace(self, chat=True)

    def parts(self, row: Mapping[str, Any], chosen: Any, rejected: Any, system_wins: bool = False) -> Parts:
        """A row's parts with these answers.

        Raises:
            BadRow: the row has no prompt where its file has one, or one where the file has none.
        """
        return Parts(
            chosen, rejected, self._value(row), chat=self.chat or self.system is not None, before=self._before(row),
            system=row.get(self.system) if self.system else None, system_wins=system_wins,
        )  # fmt: skip

    def _value(self, row: Mapping[str, Any]) -> Any:
        if not self.names:
            return None
        first = field_of(row, self.names[0])
        if len(self.names) == 1:
            if self.name in MESSAGE_LISTS and isinstance(decoded_chat(first), str):
                raise BadRow("wrong type", f"{self.names[0]} is text, expected a list of messages")
            return first
        texts = [answer(value, name)[0] for name in self.names if (value := row.get(name)) is not None]
        if not all(isinstance(text, str) for text in texts):
            raise BadRow("wrong type", f"{' and '.join(self.names)} are not both text")
        return "\n".join(text for text in texts if isinstance(text, str) and text.strip())

    def _before(self, row: Mapping[str, Any]) -> Turns:
        """Earlier turns: LLaMA-Factory's and ms-swift's history, a list of [question, answer]."""
        turns: Turns = []
        for entry in (printed(row.get(self.history)) if self.history else None) or ():
            if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not all(isinstance(t, str) for t in entry):
                raise BadRow("wrong type", f"{self.history} holds {shorten(entry, 40)}, expected [question, answer]")
            turns += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), entry, strict=True)]
        return turns


def find_prompt(columns: Columns) -> Prompt:
    """Where the prompt is: the user's columns, else `prompt`, a conversation, or a question and what is added to it."""
    system = columns.of_role("system", *SYSTEM_NAMES)
    if "prompt" in columns.wanted:
        names = columns.wanted["prompt"] or ()
        return Prompt(names, chat=len(names) > 1 or (bool(names) and names[0] not in TRL_PROMPT), system=system)
    if name := columns.find(*TRL_PROMPT):
        return Prompt((name,), chat=False, system=system)
    if name := columns.find(*MESSAGE_LISTS, kinds=("messages",)):
        return Prompt((name,), chat=True, system=system)
    kinds = ("text", "messages", "object", "number")
    asked = [name for word in ASKED if (name := columns.find(word, kinds=kinds))]
    added = [name for word in ADDED if (name := columns.find(word, kinds=kinds))]
    first = (asked or added)[:1]
    if not first:
        return Prompt((), chat=False, system=system)
    more = [name for name in added if name not in first and not columns.repeats(name, first[0])]
    if asked and not added and (blank := columns.named(*ADDED)):
        more = [blank]  # Alpaca's input may be empty in every one of the first rows
    rivals = [name for name in asked if name not in first and not columns.repeats(name, first[0])]
    history = columns.find("history", kinds=("list",))
    if rivals or len(more) > 1:
        return Prompt((first[0],), chat=True, system=system, history=history, rivals=(*rivals, *more))
    return Prompt((first[0], *more), chat=True, system=system, history=history)
