"""Console logs: rows printed as Python dictionaries (or JSON) between progress frames, warnings and prose.

Read as bytes in large pieces; a row is found by a pattern, parsed only if it names a metric, and numbered by the
progress frame beside it. Handles carriage-return frames, ANSI colours, `[rank0]:` prefixes, frames printed into the
middle of a row, several trainings in one file (SFT before DPO), and numbers as strings (Transformers 5).
"""

from __future__ import annotations

import re
from pathlib import Path

from dpo_diag.importers.bars import UNKNOWN, Counter, counters, last_counter, next_counter
from dpo_diag.importers.facts import facts_from_text
from dpo_diag.importers.formats.key_values import read_key_values
from dpo_diag.importers.literal import ANSI, parse_row
from dpo_diag.importers.log_format import METRIC_KEY, Head, LogFormat, register
from dpo_diag.importers.parsed import Facts, Options, Parsed
from dpo_diag.importers.trainings import Place, Training, Trainings, is_training_row
from dpo_diag.records.row_files import BadRow
from dpo_diag.records.text_files import Skipped, pieces

PIECE = 4 << 20
TAIL = 1 << 16  # a row that begins in the last 64 KiB of a piece may end in the next one; longer rows are none
WINDOW = 400  # bytes beside a row in which its progress frame is looked for: a bar of a wide terminal
BANNER = 1 << 12  # bytes before a training's first row in which its length is stated
_ROW = re.compile(rb"\{\s*['\"][^{}]*(\}?)")  # {'key' ... }, the brace absent where the row is cut off
_RANK = re.compile(rb"rank[ _:=]?(\d+)\W{0,8}$", re.IGNORECASE)  # [rank0]: before a row
_COUNT = re.compile(rb"(?:after|step|iteration|global_step)[ =:]+(\d{1,15})( examples)?[^\w{\r\n]{0,4}$", re.IGNORECASE)
_HEADING = re.compile(rb"[\r\n][ *#=-]*(?:global )?step[ =:#]*(\d{1,15})[ *#=:-]*[\r\n]\s*$", re.IGNORECASE)  # Step 500
_BANNER = re.compile(rb"Running training ?\*|Num examples = [\d,]+ \| +Num Epochs", re.IGNORECASE)


class _Reader:
    """State over the pieces of a file."""

    def __init__(self, skipped: Skipped, trainer: str) -> None:
        self.skipped = skipped
        self.trainings = Trainings(skipped, trainer)
        self.candidates = 0
        self.other_ranks = 0
        self.first_rank: int | None = None
        self.counts_examples = False
        self.line = 1
        self._frame = UNKNOWN  # the last frame before the current piece

    def feed(self, data: bytes, last: bool) -> bytes:
        """Read the rows that start before the piece's tail; returns the bytes that the next piece must begin with."""
        safe = len(data) if last else max(0, len(data) - TAIL)
        position = counted = 0
        for match in _ROW.finditer(data):
            start, end = match.span()
            if start >= safe:
                break
            if not METRIC_KEY.search(data, start, min(end, start + TAIL)) or data[start - 8 : start] == b"metrics=":
                continue  # the last: Transformers' TrainOutput(..., metrics={...}) repeats the summary row
            self.line += data.count(b"\n", counted, start)
            counted = start
            self.candidates += 1
            if not match.group(1):
                self.skipped.add(self.line, "a row is cut off: no closing brace")
            else:
                self._row(data, position, start, end)
            position = end
        cut = max(position, safe)
        self.line += data.count(b"\n", counted, cut)
        frame = last_counter(data, max(position, cut - WINDOW), cut)
        self._frame = frame if frame != UNKNOWN or position else self._frame
        return data[cut:]

    def _row(self, data: bytes, position: int, start: int, end: int) -> None:
        prefix = data[max(position, start - 60) : start]
        if b"\x1b" in prefix:
            prefix = ANSI.sub(b"", prefix)
        if b"ank" in prefix and (rank := _RANK.search(prefix)):
            own = int(rank.group(1))
            self.first_rank = own if self.first_rank is None else self.first_rank
            if own != self.first_rank:
                self.other_ranks += 1
                return
        row = parse_row(data[start:end])
        if row is None:
            self.skipped.add(self.line, "a row cannot be parsed as a dictionary")
            return
        if isinstance(row, BadRow):
            self.skipped.add(self.line, str(row))
            return
        step = self._step_in_front(prefix if start - position > len(prefix) else b"\n" + prefix)
        is_train = is_training_row(row)
        before = self._frame_before(data, position, start, is_train)
        next_row = data.find(b"{", end, end + WINDOW)
        after = next_counter(data, end, next_row if next_row >= 0 else end + WINDOW)
        place = Place.of(row, step, before)
        training = self._training_of(place, data, position, start) if is_train else self.trainings.current
        block = training.store.add(row, self.line, step)
        if block is None:
            return
        training.frames.add(before, after)
        if block.is_train:
            training.bar_total = before[1] if before != UNKNOWN else training.bar_total
            if after[1] == training.bar_total:
                place.bar = after
            training.note(place)

    def _step_in_front(self, prefix: bytes) -> int | None:
        """The step that the text right before a row names: `step 10: {`, or a line of its own."""
        if b"tep" not in prefix and b"fter" not in prefix and b"teration" not in prefix:
            return None
        if heading := _HEADING.search(prefix):
            return int(heading.group(1))
        count = _COUNT.search(prefix) if prefix[-3:].strip()[-1:] in (b":", b"=", b"-", b"|") else None
        self.counts_examples |= count is not None and count.group(2) is not None
        return int(count.group(1)) if count is not None else None

    def _training_of(self, place: Place, data: bytes, position: int, start: int) -> Training:
        """The training that a row at this place belongs to: the current one, or another that begins with it."""
        training = self.trainings.current
        banner = _BANNER.search(data, position, start) if training.n_train or training.store.summaries else None
        if banner is not None or self.trainings.ends_before(place):
            training = self.trainings.begin()
        if training.n_train == 0:
            training.facts.merge(facts_from_text(data[max(position, start - BANNER) : start], "its banner"))
            training.start = _start(data, position, start, place.bar[1])
        return training

    def _frame_before(self, data: bytes, position: int, start: int, is_train: bool) -> Counter:
        """The nearest frame; for an evaluation row the training bar's last one, which may lie far before."""
        total = self.trainings.current.bar_total
        if not is_train and total is not None:
            mark = b"/%d [" % total
            at = data.rfind(mark, position, start)
            if at >= 0 and (frame := last_counter(data, max(0, at - 12), at + len(mark))) != UNKNOWN:
                return frame
        if start - position > 8 and (frame := last_counter(data, max(position, start - WINDOW), start)) != UNKNOWN:
            return frame
        return self._frame if position == 0 else UNKNOWN


def _start(data: bytes, position: int, end: int, total: int) -> Counter:
    """The first counter above 0 of the bar of that length in data[position:end], after it ran backwards, if it did."""
    start, last = UNKNOWN, UNKNOWN
    for counter in counters(data, position, end):
        if counter[1] == total:
            start = counter if start[0] < 1 or counter[0] < last[0] else start
            last = counter
    return start


def _is_text(head: Head) -> bool:
    return METRIC_KEY.search(head.data) is not None or b"\0" not in head.data or b"\n" in head.data[:4096]


def read_console(path: Path, options: Options) -> Parsed:
    """Read a console log. Steps: see `dpo_diag.importers.steps`; several trainings: `dpo_diag.importers.trainings`."""
    parsed = Parsed.of("console", [path], options)
    reader = _Reader(parsed.skipped, options.trainer or "any")
    data, is_head = b"", True
    stated = Facts()
    waiting: list[bytes] = []
    size = 0
    for piece in pieces(path, parsed.skipped, PIECE):
        waiting.append(piece)
        size += len(piece)
        if size < PIECE:
            continue
        data = data + b"".join(waiting)
        if is_head:
            stated.merge(facts_from_text(data[: 1 << 20], path.name))
            is_head = False
        data = reader.feed(data, last=False)
        waiting, size = [], 0
    data = data + b"".join(waiting)
    stated.merge(facts_from_text(data[-(1 << 20) :], path.name))
    reader.feed(data, last=True)
    training, notes = reader.trainings.taken(options.run)
    parsed.store, parsed.run = training.store, options.run
    if training.store.rows == 0 and not training.store.summaries:
        # Lines that name their numbers, behind more text than a format is recognised by.
        return read_key_values(path, options)
    is_alone = len(reader.trainings.chained) == 1
    lengths = stated if is_alone else training.facts
    parsed.facts.merge(stated if is_alone else stated.without_length())
    length = lengths.length(training.store.summaries, options.logging_steps, training.ended)
    parsed.with_steps(options, training.frames, length, training.resumed_at)
    if reader.counts_examples:
        parsed.notes.append("steps are counted in examples, as the source counts them")
    parsed.notes += notes
    if reader.other_ranks:
        parsed.notes.append(f"{reader.other_ranks} rows of other ranks left out")
    parsed.n_rows = reader.candidates
    return parsed


register(
    LogFormat(
        name="console",
        description="console text with printed dictionaries between progress frames",
        trainers=("TRL", "eric-mitchell/dpo", "OpenRLHF", "any"),
        file_name="train.log",
        example="  1%|          | 10/1000 [00:30<50:00]\n{'loss': 0.6931, 'rewards/chosen': 0.01, 'epoch': 0.1}\n",
        order=90,
        why="any text can hold printed rows",
        sniff=_is_text,
        read=read_console,
        rounding=2,
    )
)
