"""The judgements: append-only JSONL, one file per reviewer under RUN/review/, each line safe before the next item.

A line is written with one system call on a file opened for appending, under a lock, and synced to the disk. A process
killed in the middle leaves at most one torn last line, which reading passes over and reports; the next write starts a
new line after it. Nothing is ever rewritten: an undo is a line too, and the last line about an item counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.outputs.answers import Checkpoint
from dpo_diag.records.checksums import KEY, ZERO, agrees, sealed
from dpo_diag.records.run_lock import writing
from dpo_diag.records.typed_json import Tolerance, from_document
from dpo_diag.text import to_json

FOLDER = "review"
VERSION = 1
WINNERS = ("a", "b", "tie", "both_bad")
UNDO, SKIP = "undo", "skip"
PERSON, JUDGE = "person", "judge"
_NAME = re.compile(r"\w[\w .@+:-]{0,63}\Z")


@dataclass(frozen=True)
class Judgement:
    """One line: a reviewer's verdict on an item.

    Attributes:
        kind: person | judge.
        item, prompt_id, sample, decoding_hash: what was judged.
        a, b: the two checkpoints; `left` says which of them stood left.
        outcome: a | b (that answer is better) | tie | both_bad | skip | undo.
        behaviours: behaviour -> which answers show it, a subset of ["a", "b"]; only behaviours the reviewer marked.
        asked: the behaviours that were on the list: an unmarked one is "neither shows it", an absent one unknown.
        note: free text.
        seconds: how long the item was on the screen.
        time: ISO 8601, UTC.
        detail: a judge's: its model, its replies in both orders.
    """

    reviewer: str
    kind: str
    item: str
    prompt_id: str
    sample: int
    a: Checkpoint
    b: Checkpoint
    left: str
    outcome: str
    time: str
    decoding_hash: str | None = None
    behaviours: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    note: str = ""
    seconds: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        row = {"v": VERSION, **asdict(self), "a": self.a._asdict(), "b": self.b._asdict()}
        # A lone surrogate in a note becomes its JSON escape.
        return sealed(to_json({**row, KEY: ZERO}).encode("utf-8", "backslashreplace"), ".json")


@dataclass(frozen=True)
class Judgements:
    """All lines that could be read, in order, and (file, line number, why) of those that could not."""

    rows: list[Judgement]
    damaged: list[tuple[str, int, str]]

    def effective(self) -> list[Judgement]:
        """The last line of each reviewer about each item, without undone ones; skips are in it."""
        last: dict[tuple[str, str], Judgement] = {}
        for row in self.rows:
            # Re-inserted, so that the order is that of the last word on each item.
            last.pop((row.reviewer, row.item), None)
            if row.outcome != UNDO:
                last[row.reviewer, row.item] = row
        return list(last.values())


def check_reviewer(name: str) -> str:
    """The name, if it can be a file's name everywhere.

    Raises:
        DiagError: a path, an empty or an overlong name.
    """
    if not _NAME.match(name) or name.rstrip() != name or name.endswith("."):
        raise DiagError(
            "not a reviewer's name", where="--reviewer", got=repr(name[:80]),
            expected="up to 64 letters, digits, blanks, . @ + : _ -, a letter or digit first", usage=True,
        )  # fmt: skip
    return name


def file_of(run: str | os.PathLike[str], reviewer: str) -> Path:
    """Where a reviewer's lines stand."""
    return Path(run) / FOLDER / f"{check_reviewer(reviewer).replace(':', '_')}.jsonl"


@contextmanager
def sitting(run: str | os.PathLike[str], reviewer: str) -> Iterator[None]:
    """One reviewer judges in one place at a time: of two verdicts on an item only the last would count.

    Raises:
        DiagError: another process asks this reviewer now.
    """
    file = file_of(run, reviewer)
    place = file.with_name(f".{file.stem}")
    try:
        with writing(place):
            yield
    except DiagError as error:
        if error.where != place.resolve():
            raise
        hint = "go on there, or end it, or name another --reviewer"
        raise DiagError(f"{reviewer} reviews this run already", where=run, got=error.got, hint=hint) from error
    finally:
        with suppress(OSError):  # of which one is that another process has it
            place.rmdir()


def _sync_folder(folder: Path) -> None:
    """The new file's name must survive a power cut as well as its content."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def append(run: str | os.PathLike[str], row: Judgement) -> None:
    """Add one line; on the disk when this returns.

    Raises:
        DiagError: the folder cannot be written, or the disk is full.
    """
    path = file_of(run, row.reviewer)
    data = row.to_line() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")), path.open("a+b", buffering=0) as file:
            fresh = file.seek(0, os.SEEK_END) == 0
            if not fresh:
                file.seek(-1, os.SEEK_END)
                data = data if file.read(1) == b"\n" else b"\n" + data  # a torn line of a killed process stays alone
            written = file.write(data)
            os.fsync(file.fileno())
            if fresh:
                _sync_folder(path.parent)
    except OSError as error:
        raise DiagError("a judgement could not be saved", where=path, got=error.strerror) from error
    if written != len(data):
        raise DiagError("a judgement could not be saved whole", where=path, hint="make room on the disk")


def read(run: str | os.PathLike[str], reviewer: str | None = None) -> Judgements:
    """The judgements of one reviewer, or of all; none for a run that was never reviewed.

    Lines that are torn or do not fit are passed over and named.
    """
    folder = Path(run) / FOLDER
    files = sorted(folder.glob("*.jsonl")) if reviewer is None else [file_of(run, reviewer)]
    rows: list[Judgement] = []
    damaged: list[tuple[str, int, str]] = []
    for path in files:
        if not path.is_file():
            continue
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                rows.append(_parse(line))
            except (ValueError, DiagError) as error:
                torn = number == len(lines)
                damaged.append((path.name, number, "torn: the process was killed while writing it" if torn else
                                f"cannot be read: {type(error).__name__}"))  # fmt: skip
    # Two names may share a file ("a:b" and "a_b"; "Ann" and "ann" on some disks): the line says whose it is.
    return Judgements([r for r in rows if reviewer in (None, r.reviewer)], damaged)


def _parse(line: bytes) -> Judgement:
    row = parse_json(line.decode("utf-8", "replace"))
    if not isinstance(row, dict) or row.pop("v", None) != VERSION:
        raise ValueError("unknown version")
    if KEY in row and not agrees(line, ".json"):
        raise ValueError("other bytes than were written")
    judgement = from_document(Judgement, row, "a judgement", Tolerance.UNKNOWN_FIELDS)
    if judgement.outcome not in (*WINNERS, SKIP, UNDO) or judgement.kind not in (PERSON, JUDGE):
        raise ValueError("unknown outcome or kind")
    marks = {name: [x for x in shown if x in ("a", "b")] for name, shown in judgement.behaviours.items()}
    return replace(judgement, behaviours=marks)
