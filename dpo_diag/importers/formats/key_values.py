"""Console text whose lines name their numbers: own training loops, mlx-lm and mlx-lm-lora, OpenRLHF's and other
progress bars, torchtune's console, verl, blocks of `***** eval metrics *****`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from dpo_diag.importers.bars import UNKNOWN
from dpo_diag.importers.facts import facts_from_text
from dpo_diag.importers.key_values import Line, parse_line
from dpo_diag.importers.keys import place
from dpo_diag.importers.log_format import HEAD_BYTES, METRIC_KEY, Head, LogFormat, register
from dpo_diag.importers.numbers import number
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.trainings import Trainings
from dpo_diag.records.text_files import lines

OWN_LOOP = "own loop"
FIRST_ROWS = 200
"""Rows from which it is guessed who wrote the log and what its short names mean."""
_MAY_HOLD = re.compile(rb"loss|reward|margin|logp|metrics|=", re.IGNORECASE)
_BLOCK = re.compile(rb"(?<!\*)\*{3,}+ *(train|eval|test|predict)\w*(?: \w+)? metrics *\*{3,}", re.IGNORECASE)
_IN_BLOCK = re.compile(rb"(?<![\w/@.-])([\w/@.-]++) ++=  *(\S++) *$")
_MLX = re.compile(r"it/s(?:ec)?\b|trained tokens|peak[ _]mem", re.IGNORECASE)
_ACCURACY = ("acc", "accuracy")


@dataclass
class _Source:
    """Lines of a file as rows, with what their first ones show."""

    parsed: Parsed
    trainings: Trainings
    renames: dict[str, str] = field(default_factory=dict)
    offset: int = 0
    last: Line | None = None
    from_bar: bool = False

    def add(self, line: Line, at: int) -> None:
        """Take a row; a step that is counted anew in each epoch counts on."""
        row = {self.renames.get(name, name): value for name, value in line.row.items()}
        step, before = line.step, self.last
        if step is None and line.bar != UNKNOWN:
            step, self.from_bar = line.bar[0], True
        elif step is not None and not any(k.startswith("eval") for k in row):
            if before is not None and before.step is not None and _is_next_epoch(before, line):
                self.offset += before.of or before.step
            self.last = line
        if step is not None and line.step is not None:
            step += self.offset
        if line.epoch is not None and step is None:  # beside a step it is the epoch's number, not how much is done
            row["epoch"] = str(line.epoch)
        self.trainings.add(row, at, step)


def _is_next_epoch(before: Line, line: Line) -> bool:
    rises = before.epoch is not None and line.epoch is not None and line.epoch > before.epoch
    return rises and line.step is not None and before.step is not None and line.step < before.step


def _rows(path: Path, parsed: Parsed, trainer: str) -> Iterator[tuple[int, Line]]:
    """(line number, row): of a bar's many drawings at one count the last, of a block of metrics one row."""
    block: dict[str, str] | None = None
    waiting: tuple[int, Line] | None = None
    for at, raw in lines(path, parsed.skipped):
        for part in raw.split(b"\r") if b"\r" in raw else (raw,):
            if block is not None:
                if pair := _IN_BLOCK.search(part):
                    block[pair.group(1).decode("utf-8", "replace")] = pair.group(2).decode("ascii", "replace")
                    continue
                row, block = _of_block(block), None
                if row is not None:
                    if waiting is not None:
                        yield waiting
                    waiting = (at, row)
            if not _MAY_HOLD.search(part):
                continue
            if heading := _BLOCK.search(part):
                # A training's block is its summary: the row of no step.
                block = None if heading.group(1).lower() == b"train" else {}
                continue
            line = parse_line(part.decode("utf-8", "replace"), trainer)
            if line is None:
                continue
            if waiting is not None and not (line.bar == waiting[1].bar != UNKNOWN and line.step == waiting[1].step):
                yield waiting
            waiting = (at, line)
    if waiting is not None:
        yield waiting
    if block is not None and (row := _of_block(block)) is not None:
        yield at, row


def _of_block(block: dict[str, str]) -> Line | None:
    epoch = number(block.pop("epoch", None))
    values = {k: v for k, v in block.items() if number(v) is not None}
    return Line(values, epoch=epoch) if any("loss" in k for k in values) else None


def _guess(first: list[tuple[int, Line]], source: _Source, trainer: str) -> None:
    """What short names mean beside the others of the first rows; stated in the notes."""
    keys = {key for _, line in first for key in line.row}
    names = {p.name for key in keys if (p := place(key, trainer)) is not None}
    notes = source.parsed.notes
    if keys >= {"chosen", "rejected"} and (margin := next((k for k in ("margin", "margins") if k in keys), None)):
        numbers = [[number(line.row.get(k)) for k in ("chosen", "rejected", margin)] for _, line in first]
        whole = [(c, r, m) for c, r, m in numbers if c is not None and r is not None and m is not None]
        if whole and all(abs(c - r - m) <= 0.011 for c, r, m in whole):
            source.renames |= {"chosen": "rewards/chosen", "rejected": "rewards/rejected"}
            notes.append(f"taken as rewards: chosen and rejected, whose difference is {margin}")
    is_preference = source.renames or any(n.startswith("rewards/") and n != "rewards/accuracies" for n in names)
    for key in _ACCURACY:
        if key in keys and is_preference and (p := place(key, trainer)) is not None and not p.known:
            source.renames[key] = "rewards/accuracies"
            notes.append(f"taken as the share of pairs with a positive margin: {key}, beside rewards")


def read_key_values(path: Path, options: Options) -> Parsed:
    """Read lines that name their numbers; what was guessed of their names stands in the notes."""
    parsed = Parsed.of("text", [path], options)
    head = Head(path)
    if parsed.trainer == "unknown":
        parsed.trainer = _trainer(head)
    trainer = parsed.trainer if parsed.trainer != OWN_LOOP else "any"
    source = _Source(parsed, Trainings(parsed.skipped, trainer))
    first: list[tuple[int, Line]] = []
    for at, line in _rows(path, parsed, trainer):
        parsed.n_rows += 1
        if parsed.n_rows <= FIRST_ROWS:
            first.append((at, line))
            continue
        if first:
            _take_first(first, source, trainer)
        source.add(line, at)
    _take_first(first, source, trainer)
    training, notes = source.trainings.taken(options.run)
    parsed.store = training.store
    parsed.notes += notes
    parsed.facts.merge(facts_from_text(head.data, path.name))
    parsed.with_steps(options, resumed_at=training.resumed_at)
    if source.from_bar and parsed.steps == "stated":
        parsed.steps, parsed.steps_from = "bar", "the progress bar that carries the numbers"
    return parsed


def _take_first(first: list[tuple[int, Line]], source: _Source, trainer: str) -> None:
    _guess(first, source, trainer)
    for at, line in first:
        source.add(line, at)
    first.clear()


def _trainer(head: Head) -> str:
    if re.search(r"^Iter \d+: ", head.text, re.MULTILINE) and _MLX.search(head.text):
        return "mlx-lm-lora" if re.search(r"chosen|rejected", head.text, re.IGNORECASE) else "mlx-lm"
    if "chosen_reward=" in head.text and "reject_reward=" in head.text:
        return "openrlhf"
    return OWN_LOOP


def _names_its_numbers(head: Head) -> bool:
    """Whether no dictionaries are printed in it, and two lines are rows; one, where that is the whole file."""
    if METRIC_KEY.search(head.data) is not None:
        return False
    least = 2 if len(head.data) >= HEAD_BYTES else 1
    parts = (part for part in re.split(rb"[\r\n]+", head.data) if _MAY_HOLD.search(part))
    rows = (p for p in parts if _BLOCK.search(p) or parse_line(p.decode("utf-8", "replace")) is not None)
    return len(list(islice(rows, least))) == least


register(
    LogFormat(
        name="text",
        description="console lines that name their numbers: own loops, mlx-lm, progress bars, blocks of metrics",
        trainers=("mlx-lm", "mlx-lm-lora", "OpenRLHF", "torchtune", "any"),
        file_name="train.log",
        example="step=10 loss=0.6931 margin=0.01\nIter 20: Train loss 0.69, Chosen reward 0.01, It/sec 0.1\n",
        order=88,
        why="lines of text, unless dictionaries are printed between them",
        sniff=_names_its_numbers,
        read=read_key_values,
        rounding=2,
    )
)
