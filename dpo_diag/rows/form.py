"""Forms of rows: how a file is recognised by its columns, once, and how each of its rows is read.

A form looks at the columns (`RowForm.match`) and answers with a `Reading`: which columns are what. Forms are asked in
their order; the first that answers reads the file. A form can also be one that holds no pairs (`refusal`): its rows are
refused with what to do, and never fall back to text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dpo_diag.records.row_files import BadRow
from dpo_diag.registry import Registry
from dpo_diag.rows.columns import Columns, Wanted, filled, simple
from dpo_diag.rows.implicit import Rules
from dpo_diag.rows.pair import WITH_MEDIA, Pair, Turns, shorten, template_options
from dpo_diag.rows.parts import Parts, assemble
from dpo_diag.rows.prompt_columns import AS_TURN, PROMPT_NAMES, SYSTEM_NAMES, TRL_PROMPT

Row = Mapping[str, Any]
MEDIA = ("images", "image", "videos", "audios")
"""Columns that the model would see, and that are not read here."""
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Reading:
    """How the rows of one file are read.

    Attributes:
        form: name of the form.
        title: what people call it.
        says: what is prompt, chosen and rejected, in one line.
        columns: the columns that are read.
        parts: a row's parts; raises `BadRow`.
        check: what else a prompt of messages must be; raises `BadRow`.
        not_read: columns of text that are not read.
        rules: for a prompt that stands in no column.
        chat: the user's word on whether a prompt of text is a user's turn; None leaves it to the form.
        refused: the form holds no pairs, or the file leaves open which.
        empty: columns that would be read if the first rows held anything in them.
        single: its rows hold one answer and no pair.
        alone: of a form of such rows: the reading for a training that needs no more (SFT).
    """

    form: str
    title: str
    says: str
    columns: frozenset[str]
    parts: Callable[[Row], Parts]
    check: Callable[[Turns], None] | None = None
    not_read: tuple[str, ...] = ()
    rules: Rules = field(default_factory=Rules)
    chat: bool | None = None
    refused: bool = False
    empty: frozenset[str] = frozenset()
    single: bool = False
    alone: Reading | None = None

    def pair(self, row: Row) -> Pair:
        """A row as a pair.

        Raises:
            BadRow: it does not fit.
        """
        parts = self.parts(row)
        for name in row.keys() & self.empty:
            if filled(row[name]):
                hint = "put rows that hold it first, or give them a file of their own"
                raise BadRow(
                    "another form than the file's", f"the row has {name}, the file's first rows have none", hint
                )
        for name in MEDIA:
            if filled(row.get(name)):
                raise BadRow("a row with images, audio or video", f"{name} holds {shorten(row[name], 40)}", WITH_MEDIA)
        parts.extra = template_options(row) | parts.extra
        if self.chat is not None and self.chat != parts.chat and isinstance(parts.prompt, str):
            parts = _as_text(parts) if parts.chat else replace(parts, chat=True)
        pair = assemble(parts, self.rules)
        if self.check is not None and not isinstance(pair.prompt, str):
            self.check(pair.prompt)
        return pair

    def summary(self) -> dict[str, Any]:
        """For the data report."""
        return {"form": self.form, "says": self.says, "columns_not_read": list(self.not_read)}


def _as_text(parts: Parts) -> Parts:
    """A question for a model without chat template: the system's text above it, the answer on a line of its own."""
    system = parts.system if isinstance(parts.system, str) and parts.system.strip() else ""
    whole = "\n".join(text for text in (system, str(parts.prompt)) if text)
    return replace(parts, prompt=whole if whole[-1:].isspace() else whole + "\n", system=None, chat=False)


@dataclass(frozen=True)
class RowForm:
    """A way to write preference pairs, or one that holds none.

    Attributes:
        title: what people call it: "Alpaca".
        columns: which columns it has, for the table of the docs.
        pair: what becomes prompt, chosen and rejected, or why there is no pair.
        match: a file's reading in this form, None if it is not written so.
        example: a row.
        order: forms are asked in ascending order.
    """

    title: str
    columns: str
    pair: str
    match: Callable[[Columns], Reading | None]
    example: Row
    order: int = 50


FORMS: Registry[RowForm] = Registry("row form", "dpo_diag.rows.forms")


def refusal(columns: Columns, form: str, title: str, why: str, detail: str, hint: str) -> Reading:
    """The reading of a form that holds no preference pairs: each row is refused."""

    def refuse(row: Row) -> Parts:
        raise BadRow(why, detail, hint)

    return Reading(form, title, f"no preference pairs: {why}", frozenset(columns.kinds), refuse, refused=True)


@dataclass(frozen=True)
class How:
    """What is known of a file before its rows are seen.

    Attributes:
        form: the form's name; "auto": its columns decide.
        wanted: what the user says columns are (`columns.wanted`).
        rules, chat: see `Reading`.
        supervised: rows of one answer are taken, too.
    """

    form: str = "auto"
    wanted: Wanted = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    chat: bool | None = None
    supervised: bool = False


def recognise(rows: list[Row], how: How | None = None) -> Reading:
    """How a file is to be read, by its first readable rows (`columns.SAMPLE` are enough).

    Raises:
        DiagError: the user names a column that is not there; an unknown form.
    """
    how = how or How()
    columns, form = Columns.of(rows, how.wanted), how.form
    if form != "auto":
        reading = FORMS[form].match(columns)
        if reading is None:
            title = FORMS[form].title
            reading = refusal(
                columns, form, title, f"not written as {title}", f"the columns are {shorten(columns.says())}",
                f"{title} has {FORMS[form].columns}; data=jsonl recognises the form",
            )  # fmt: skip
    else:
        forms = sorted(FORMS.items(), key=lambda item: (item[1].order, item[0]))
        reading = next((found for _, entry in forms if (found := entry.match(columns)) is not None), None) or _unknown(
            columns
        )
    if how.supervised and reading.alone is not None:
        reading = reading.alone
    not_read, says = _not_read(columns, reading), reading.says
    if how.chat is not None:
        says = says.replace(AS_TURN, "") + (", as chat turns" if how.chat else ", as plain text")
    rules = replace(how.rules, other_columns=not_read)
    empty = reading.empty | _empty(columns, reading)
    return replace(reading, says=says, not_read=not_read, rules=rules, chat=how.chat, empty=empty)


def _empty(columns: Columns, reading: Reading) -> frozenset[str]:
    """Names that the form would have read, had the sample held anything under them."""
    names = (
        SYSTEM_NAMES
        if set(map(simple, reading.columns)) & set(TRL_PROMPT)
        else (*SYSTEM_NAMES, *PROMPT_NAMES, "history")
    )
    held = {name for name, kind in columns.kinds.items() if kind != "empty"} | reading.columns
    absent = {name for name, kind in columns.kinds.items() if kind == "empty" and simple(name) in names}
    unwanted = {role for role, given in columns.wanted.items() if given is None}
    return frozenset({*names, *absent} - held - unwanted)


def _unknown(columns: Columns) -> Reading:
    return refusal(
        columns, "unknown", "an unknown form", "no known form of preference pairs",
        f"the columns are {shorten(columns.says(), 120)}",
        "say which columns they are: data.columns.prompt=NAME data.columns.chosen=NAME data.columns.rejected=NAME",
    )  # fmt: skip


def _not_read(columns: Columns, reading: Reading) -> tuple[str, ...]:
    """Columns of text beside those that are read: a prompt's name, or more than a word in some row. Earlier turns are
    text too, in whatever list."""
    kinds = ("text", "messages")
    left = [
        name
        for name, kind in columns.kinds.items()
        if name not in reading.columns and (kind in kinds or (kind == "list" and simple(name) == "history"))
    ]
    unwanted = {simple(role) for role, given in columns.wanted.items() if given is None}

    def says_something(name: str) -> bool:
        asks = simple(name) in (*PROMPT_NAMES, *SYSTEM_NAMES, "history")
        return asks or any(len(str(value).split()) > 2 for value in columns.values(name))

    skipped = (*unwanted, *TEMPLATE_COLUMNS)
    unread = [name for name in left if simple(name) not in skipped and says_something(name)]
    return tuple(name for name in unread if not any(columns.repeats(name, read) for read in reading.columns))
