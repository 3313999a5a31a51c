"""A data set of preference pairs: what was read, what was not and why, a fingerprint, and a split without leakage.

Every row that is left out is listed with its reason; nothing is dropped silently. What a later stage must know (the
counts, the reasons, the fingerprint) is `PairSet.summary()`; the list itself is `PairSet.issues`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import pandas as pd

from dpo_diag.data.files import Paths, check_file, expand
from dpo_diag.errors import DiagError
from dpo_diag.records.conversation import prompt_text, response_text
from dpo_diag.records.pair_id import texts_of
from dpo_diag.records.row_files import BadRow, read_rows
from dpo_diag.records.row_files import Row as RawRow
from dpo_diag.records.schemas import SIDES
from dpo_diag.rows.columns import SAMPLE
from dpo_diag.rows.form import How, Reading, recognise
from dpo_diag.rows.pair import Pair, prompt_key, shorten
from dpo_diag.text import plural

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
"""row (its number in the source), pair_id, prompt, chosen, rejected (all text or all messages), chosen_bytes,
rejected_bytes (UTF-8 bytes of the responses' text), and `tools` or `chat_template_kwargs` where the source has them.
A row of one answer (SFT) has it as `chosen` and has no `rejected`; a whole text is `chosen` behind the prompt ""."""

MAX_BAD_SHARE = 0.05
ISSUE_COLUMNS = ["row", "why", "detail", "dropped"]
TRAINED_COLUMNS = ("prompt", "chosen", "rejected", "pair_id", "tools", "chat_template_kwargs")


@dataclass
class PartRead:
    """One file of a set: its rows are numbered from `offset` + 1 within the set."""

    path: str | None
    offset: int
    reading: Reading
    n_read: int = 0
    n_pairs: int = 0

    def says(self) -> list[str]:
        """How it was read, and which columns of text were not: a line each."""
        of = f"{self.n_pairs} of " if self.n_pairs != self.n_read else ""
        where = f"{self.path}: " if self.path else ""
        lines = (
            [f"{where}{of}{plural(self.n_read, 'row')} read as {self.reading.title}: {self.reading.says}"]
            if self.n_pairs
            else []
        )
        if self.n_pairs and self.reading.not_read:
            names = ", ".join(self.reading.not_read)
            lines.append(
                f"{where}columns of text that the model does not see: {names} (data.columns says what a column is)"
            )
        return lines


@dataclass
class PairSet:
    """Preference pairs from one source.

    Attributes:
        rows: the usable pairs, in the source's order (see `Row`).
        issues: one line per finding: row (number in the source), why, detail, dropped (False: kept, but look at it).
        n_read: rows of the source, blank lines not counted.
        source: where they come from: path or name, format, split.
        kind: "text", "messages" or "whole text"; every row is of this kind.
        fingerprint: SHA-256 of the usable pairs' content in order; the same pairs give the same one from any format.
        parts: the files, in their order, and how each was read.
        hints: reason of dropped rows -> what the user can do about it.
    """

    rows: list[Row]
    issues: pd.DataFrame
    n_read: int
    source: dict[str, Any]
    kind: str
    fingerprint: str
    parts: list[PartRead] = field(default_factory=list)
    hints: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_dropped(self) -> int:
        """Rows of the source that are no usable pair."""
        return int(self.issues["dropped"].sum())

    @property
    def bad_share(self) -> float:
        """Dropped rows / rows read; 0 for an empty source."""
        return self.n_dropped / self.n_read if self.n_read else 0.0

    def summary(self) -> dict[str, Any]:
        """For run.json's `data`: source, counts, reasons, fingerprint. No text of the pairs."""
        dropped = self.issues[self.issues["dropped"]]
        kept = self.issues[~self.issues["dropped"]]
        return {
            "source": self.source,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "n_read": self.n_read,
            "n_pairs": len(self.rows),
            "n_prompts": len({split_key(row) for row in self.rows}),
            "n_dropped": self.n_dropped,
            "bad_share": self.bad_share,
            "dropped": {str(k): int(v) for k, v in dropped["why"].value_counts().items()},
            "noted": {str(k): int(v) for k, v in kept["why"].value_counts().items()},
            "readings": [
                {"path": p.path, "n_read": p.n_read, "n_pairs": p.n_pairs, **p.reading.summary()} for p in self.parts
            ],
        }

    @property
    def is_single(self) -> bool:
        """Whether rows of one answer were taken, and no pairs."""
        return bool(self.parts) and all(part.reading.single for part in self.parts)

    @property
    def what(self) -> str:
        """What a row is called."""
        return "row" if self.is_single else "preference pair"

    @property
    def expected(self) -> str:
        """Which columns hold it."""
        return "messages, prompt and completion, or text" if self.is_single else "prompt, chosen, rejected"

    def place(self, number: int) -> tuple[str | None, int]:
        """(file, row in it) of a row of the set."""
        part = next((p for p in reversed(self.parts) if p.offset < number), None)
        return (None, number) if part is None else (part.path, number - part.offset)

    def require(self, max_bad_share: float = MAX_BAD_SHARE) -> PairSet:
        """Itself, if there are pairs and the share of dropped rows is at most `max_bad_share`.

        Raises:
            DiagError: no usable pair, or too many bad rows; it names the commonest reasons and the first rows.
        """
        if self.rows and self.bad_share <= max_bad_share:
            return self
        where = self.source.get("path") or self.source.get("name")
        dropped = self.issues[self.issues["dropped"]]
        if not len(dropped):
            raise DiagError(f"no {self.what}s", where=where, got=f"{self.n_read} rows")
        reasons = []
        for why, count in dropped["why"].value_counts().head(3).items():
            first = dropped.loc[dropped["why"] == why].iloc[0]
            detail = f": {first['detail']}" if first["detail"] else ""
            file, row = self.place(int(first["row"]))
            within = f" of {file}" if len(self.parts) > 1 else ""
            reasons.append(f"{count} {why} (first in row {row}{within}{detail})")
        raise DiagError(
            "too many bad rows" if self.rows else f"no usable {self.what}",
            where=where,
            got=f"{self.n_dropped} of {self.n_read} rows: {', '.join(reasons)}",
            expected=f"at most {max_bad_share:.3g} of the rows" if self.rows else self.expected,
            hint=self.hints.get(str(dropped["why"].value_counts().index[0]), "correct those rows")
            + (", or raise data.max_bad_share" if self.rows else ""),
        )


def to_dataset(rows: Sequence[Row]) -> Dataset:
    """Rows as a `datasets.Dataset`: prompt, chosen, rejected (for SFT prompt, completion, or text), pair_id, and what
    the chat template takes.

    Messages and template options are JSON there: as columns of Arrow every message would get the keys of all others,
    filled with null, which templates write out.

    Raises:
        DiagError: no rows, since a trainer cannot find out their columns.
    """
    from datasets import Dataset, Features, Json, List, Value

    if not rows:
        raise DiagError("no rows to train or evaluate on", hint="check data and the held-out share")
    names = [name for name in (*TRAINED_COLUMNS, "completion", "text") if any(name in row for row in rows)]
    text = Value("string")
    turns = text if isinstance(rows[0].get("prompt", ""), str) else List(Json())
    kinds = dict.fromkeys(("prompt", *SIDES, "completion"), turns) | {"chat_template_kwargs": Json()}
    # TRL unpacks a row's template options: none is an empty mapping.
    blank: Row = {"chat_template_kwargs": {}}
    table = [{name: row.get(name, blank.get(name)) for name in names} for row in rows]
    return Dataset.from_list(table, features=Features({name: kinds.get(name, text) for name in names}))


def text_rows(rows: Iterable[Row], split: str) -> list[dict[str, str | None]]:
    """Rows of the `texts` table: messages rendered as `role: content` paragraphs."""
    return [{"split": split, "pair_id": row["pair_id"], **texts_of(row)} for row in rows]


def collect(
    raw_rows: Iterable[RawRow], source: Mapping[str, Any], how: How | None = None, limit: int | None = None
) -> PairSet:
    """Read raw rows into a `PairSet`. One pass; what stays in memory is the pairs and 16 characters of id for each.

    Args:
        raw_rows: (row number, row or why it cannot be read).
        source: what to say about the origin.
        how: what is known of the rows; the first of them decide what is not.
        limit: stop after so many rows of the source.
    """
    collector = _Collector(how or How(), limit)
    collector.add(raw_rows)
    return collector.done(source)


class _Collector:
    """Takes the rows of one file after the other; a row's number counts on from the files before."""

    def __init__(self, how: How, limit: int | None = None) -> None:
        self._how, self._limit = how, limit
        self._rows: list[Row] = []
        self._issues: list[tuple[int, str, str, bool]] = []
        self._hints: dict[str, str] = {}
        self._seen: dict[str, int] = {}
        self._digest = hashlib.sha256()
        self._kind = ""
        self._last = self._n_read = 0
        self._parts: list[PartRead] = []

    def add(self, raw_rows: Iterable[RawRow], path: str | None = None) -> None:
        """Read the rows of a file, whose form its first ones decide."""
        from tqdm import tqdm

        stream = iter(raw_rows)
        first = list(islice(stream, SAMPLE))
        try:
            reading = recognise([row for _, row in first if not isinstance(row, BadRow)], self._how)
        except DiagError as error:
            where = f"{error.where} for {path}" if path else error.where
            raise DiagError(
                error.what, where=where, got=error.got, expected=error.expected, hint=error.hint, usage=error.usage
            ) from None
        part = PartRead(path, self._last, reading)
        for number, raw in tqdm(chain(first, stream), desc="reading rows", unit="row", delay=2, leave=False):
            if self._limit is not None and self._n_read >= self._limit:
                break
            self._n_read += 1
            part.n_read += 1
            self._last = part.offset + number
            part.n_pairs += self._take(self._last, raw, reading, part)
        self._parts.append(part)

    def _take(self, number: int, raw: Mapping[str, Any] | BadRow, reading: Reading, part: PartRead) -> bool:
        try:
            if isinstance(raw, BadRow):
                raise raw
            pair = reading.pair(raw)
            if self._kind and pair.kind != self._kind:
                # A trainer decides once for the whole set whether to add an end token or a chat template.
                raise BadRow(f"{pair.kind} in a set of {self._kind}", shorten(prompt_text(pair.prompt)))
            row = _finished(number, pair)
            if (first := self._seen.get(row["pair_id"])) is not None:
                what = "row" if reading.single else "pair"
                raise BadRow(f"duplicated {what}", f"the same as {self._place(first, part)}")
        except BadRow as bad:
            self._issues.append((number, bad.why, bad.detail, True))
            if bad.hint:
                self._hints[bad.why] = bad.hint
            return False
        self._kind = pair.kind
        if (first := self._seen.get(pair.swapped().pair_id)) is not None:
            pair.notes.append(("contradicts another row", f"{self._place(first, part)} prefers the other response"))
        self._seen[row["pair_id"]] = number
        self._digest.update(_content(row))
        self._rows.append(row)
        self._issues.extend((number, why, detail, False) for why, detail in pair.notes)
        return True

    def _place(self, number: int, here: PartRead) -> str:
        part = next(p for p in (here, *reversed(self._parts)) if p.offset < number)
        return f"row {number - part.offset}" + ("" if part is here else f" of {part.path}")

    def done(self, source: Mapping[str, Any]) -> PairSet:
        """What was read."""
        return PairSet(
            rows=self._rows,
            issues=pd.DataFrame(self._issues, columns=ISSUE_COLUMNS).astype({"dropped": bool}),
            n_read=self._n_read,
            source={**source, "format": ", ".join(dict.fromkeys(part.reading.form for part in self._parts))},
            kind=self._kind or "text",
            fingerprint=self._digest.hexdigest(),
            parts=self._parts,
            hints=self._hints,
        )


def _finished(number: int, pair: Pair) -> Row:
    return {
        "row": number,
        "pair_id": pair.pair_id,
        "prompt": pair.prompt,
        **{side: getattr(pair, side) for side in pair.sides},
        **{f"{side}_bytes": len(response_text(getattr(pair, side)).encode()) for side in pair.sides},
        **pair.extra,
    }


def split_key(row: Row) -> str:
    """Rows that must stand on one side of a split share it: their prompt's identity, of a whole text its own."""
    return prompt_key(row["prompt"] or row["chosen"])


def _content(row: Row) -> bytes:
    kept = [row.get(name) for name in TRAINED_COLUMNS if name != "pair_id"]
    return json.dumps(kept, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n"


def read_pairs(path: Paths, how: How | None = None, *, limit: int | None = None) -> PairSet:
    """Preference pairs of json, jsonl, parquet, csv or tsv files, compressed or not. Call `.require()` on the result.

    Args:
        path: a file, several with commas between, a glob (`pairs/*.parquet`), or a list of these.

    Raises:
        DiagError: a file is absent, empty, of an unknown format, or cannot be read as a whole.
    """
    files = expand(path)
    collector = _Collector(how or How(), limit)
    for file in files:
        check_file(file)
    for file in files:
        collector.add(read_rows(file), str(file))
    return collector.done({"path": str(path) if len(files) < 2 else [str(file) for file in files]})
