"""Console logs: rows printed as Python dictionaries (or JSON) between progress frames, warnings and prose.

Read as bytes in large pieces; a row is found by a pattern, parsed only if it names a metric, and numbered by the
progress frame beside it. Handles carriage-return frames, ANSI colours, `[rank0]:` prefixes, frames printed into the
middle of a row, several trainings in one file (SFT before DPO), and numbers as strings (Transformers 5).
"""

from __future__ import annotations

import re
from pathlib import Path

from dpo_diag.importers.facts import facts_from_text
from dpo_diag.importers.literal import ANSI, parse_row
from dpo_diag.importers.log_format import METRIC_KEY, Head, LogFormat, register
from dpo_diag.importers.parsed import Facts, Options, Parsed
from dpo_diag.importers.rows import RowStore
from dpo_diag.importers.steps import Frames
from dpo_diag.records.text_files import Skipped, pieces

PIECE = 4 << 20
TAIL = 1 << 16  # a row that begins in the last 64 KiB of a piece may end in the next one; longer rows are none
WINDOW = 400  # bytes beside a row in which its progress frame is looked for: a bar of a wide terminal
UNKNOWN = (-1, -1)
_LARGEST_COUNT = (1 << 31) - 1  # what an array of C ints holds
_ROW = re.compile(rb"\{\s*['\"][^{}]*(\}?)")  # {'key' ... }, the brace absent where the row is cut off
_FRAME = re.compile(rb"(\d+)/(\d+) \[")  # tqdm: 10/1000 [00:30<50:00
_RANK = re.compile(rb"rank[ _:=]?(\d+)\W{0,8}$", re.IGNORECASE)  # [rank0]: before a row
_COUNT = re.compile(rb"(after|step|iteration|global_step)[ =:]+(\d+)( examples)?[^\w{]{0,4}$", re.IGNORECASE)
_POSTFIX = re.compile(rb"(\d+)/(\d+) \[[^\]\r\n]*?((?:, ?[A-Za-z][\w/]*=[-+.\w]+)+)\]?")  # 1/9 [..., loss=0.69]
PREFERENCE = ("rewards/", "logps/")


class _Section:
    """The rows of one training in the file."""

    def __init__(self, skipped: Skipped, trainer: str) -> None:
        self.store = RowStore(skipped, trainer)
        self.frames = Frames()
        self.bar_total: int | None = None

    @property
    def is_preference(self) -> bool:
        return any(name.startswith(PREFERENCE) for _, name in self.store.metrics())


class _Reader:
    """State over the pieces of a file."""

    def __init__(self, skipped: Skipped, trainer: str) -> None:
        self.skipped = skipped
        self.trainer = trainer
        self.section = _Section(skipped, trainer)
        self.best: _Section | None = None
        self.other_rows = 0
        self.other_trainings = 0
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
        frames = _FRAME.findall(data, max(position, cut - WINDOW), cut)
        self._frame = _counter(frames[-1]) if frames else (self._frame if position == 0 else UNKNOWN)
        return data[cut:]

    def _row(self, data: bytes, position: int, start: int, end: int) -> None:
        prefix = data[max(position, start - 60) : start]
        if b"\x1b" in prefix:
            prefix = ANSI.sub(b"", prefix)
        if b"ank" in prefix and (rank := _RANK.search(prefix)):
            number = int(rank.group(1))
            self.first_rank = number if self.first_rank is None else self.first_rank
            if number != self.first_rank:
                self.other_ranks += 1
                return
        row = parse_row(data[start:end])
        if row is None:
            self.skipped.add(self.line, "a row cannot be parsed as a dictionary")
            return
        step = None
        if prefix[-3:].strip()[-1:] in (b":", b"=", b"-", b"|") and (count := _COUNT.search(prefix)):
            step = int(count.group(2)) if len(count.group(2)) < 16 else None
            self.counts_examples |= count.group(3) is not None
        if self.section.store.summaries and self._is_train(row):
            self._next_section()
        section = self.section
        block = section.store.add(row, self.line, step)
        if block is None:
            return
        before = self._frame_before(data, position, start, block.is_train)
        next_row = data.find(b"{", end, end + WINDOW)
        after = _FRAME.search(data, end, next_row if next_row >= 0 else end + WINDOW)
        section.frames.add(before, _counter(after.groups()) if after is not None else UNKNOWN)
        if block.is_train and before != UNKNOWN:
            section.bar_total = before[1]

    def _frame_before(self, data: bytes, position: int, start: int, is_train: bool) -> tuple[int, int]:
        """The nearest frame; for an evaluation row the training bar's last one, which may lie far before."""
        if not is_train and self.section.bar_total is not None:
            at = data.rfind(b"/%d [" % self.section.bar_total, position, start)
            if at >= 0 and (digits := re.search(rb"\d+$", data[max(0, at - 12) : at])):
                return int(digits.group()), self.section.bar_total
        if start - position > 8 and (frames := _FRAME.findall(data, max(position, start - WINDOW), start)):
            return _counter(frames[-1])
        return self._frame if position == 0 else UNKNOWN

    def _is_train(self, row: dict[str, object]) -> bool:
        return "loss" in row or any(str(k).startswith(("train/", "rewards/")) for k in row)

    def _next_section(self) -> None:
        """A training row after a final summary: another training begins; the preference training is the one wanted."""
        self.close()
        self.section = _Section(self.skipped, self.trainer)

    def close(self) -> None:
        """Keep the better of the section that ends and the best so far: preference rows first, then the later one."""
        ended = self.section
        if self.best is None:
            self.best = ended
            return
        if ended.store.rows == 0:
            return
        self.other_trainings += 1
        if self.best.is_preference and not ended.is_preference:
            self.other_rows += ended.store.rows
            return
        self.other_rows += self.best.store.rows
        self.best = ended


def _counter(groups: tuple[bytes, ...]) -> tuple[int, int]:
    if len(groups[0]) > 10 or len(groups[1]) > 10:
        return UNKNOWN
    done, total = int(groups[0]), int(groups[1])
    return (done, total) if max(done, total) <= _LARGEST_COUNT else UNKNOWN


def _is_text(head: Head) -> bool:
    return METRIC_KEY.search(head.data) is not None or b"\0" not in head.data or b"\n" in head.data[:4096]


def read_console(path: Path, options: Options) -> Parsed:
    """Read a console log. Steps: see `dpo_diag.importers.steps`."""
    parsed = Parsed.of("console", [path], options)
    reader = _Reader(parsed.skipped, options.trainer or "any")
    data, is_head = b"", True
    waiting: list[bytes] = []
    size = 0
    for piece in pieces(path, parsed.skipped, PIECE):
        waiting.append(piece)
        size += len(piece)
        if size < PIECE:
            continue
        data = data + b"".join(waiting)
        if is_head:
            parsed.facts.merge(facts_from_text(data[: 1 << 20], path.name))
            is_head = False
        data = reader.feed(data, last=False)
        waiting, size = [], 0
    data = data + b"".join(waiting)
    parsed.facts.merge(facts_from_text(data[-(1 << 20) :], path.name))
    reader.feed(data, last=True)
    reader.close()
    section = reader.best or reader.section
    parsed.store = section.store
    if section.store.rows == 0 and not section.store.summaries:
        return _read_postfix(path, parsed, options)
    is_alone = reader.other_trainings == 0
    parsed.with_steps(
        options,
        section.frames,
        total_steps=parsed.facts.total_steps if is_alone else None,
        total_epochs=_final_epoch(section.store, parsed.facts) if is_alone else None,
    )
    if reader.counts_examples:
        parsed.notes.append("steps are counted in examples, as the source counts them")
    if not is_alone:
        parsed.notes.append(
            f"{reader.other_trainings} other trainings in the same file left out ({reader.other_rows} rows)"
        )
    if reader.other_ranks:
        parsed.notes.append(f"{reader.other_ranks} rows of other ranks left out")
    parsed.n_rows = reader.candidates
    return parsed


def _final_epoch(store: RowStore, facts: Facts) -> float | None:
    """The epoch at which the named total of steps was reached: the final summary's, or the configured number."""
    for summary in reversed(store.summaries):
        try:
            epoch = float(summary.get("epoch", "nan"))
        except (TypeError, ValueError):
            continue
        if epoch > 0 and facts.total_steps:
            return epoch
    return facts.total_epochs


def _read_postfix(path: Path, parsed: Parsed, options: Options) -> Parsed:
    """No dictionaries at all: the numbers that a progress bar carries (`loss=0.69, acc=0.5`), as OpenRLHF prints."""
    store = RowStore(parsed.skipped, options.trainer or "openrlhf", report_wrong_types=False)
    line, rest = 1, b""
    for piece in pieces(path, Skipped(), PIECE):
        data = rest + piece
        cut = max(data.rfind(b"\r"), data.rfind(b"\n")) + 1
        if cut == 0 and len(data) < TAIL:
            rest = data
            continue
        line = _postfix_rows(data[: cut or None], store, line)
        rest = data[cut:] if cut else b""
    _postfix_rows(rest, store, line)
    if store.rows:
        parsed.store = store
        parsed.trainer = options.trainer or "openrlhf"
        parsed.steps, parsed.steps_from = "bar", "the progress bar that carries the numbers"
        parsed.n_rows = parsed.n_read = store.rows
    return parsed


def _postfix_rows(data: bytes, store: RowStore, line: int) -> int:
    counted = 0
    for match in _POSTFIX.finditer(data):
        pairs = (p.split(b"=", 1) for p in match.group(3).split(b",") if b"=" in p)
        row = {k.strip().decode("ascii", "replace"): v.decode("ascii", "replace") for k, v in pairs}
        line += data.count(b"\n", counted, match.start())
        counted = match.start()
        done, total = _counter(match.groups()[:2])
        if done >= 0 and any("loss" in k for k in row):
            row["total_steps"] = str(total)
            store.add(row, line, done)
    return line + data.count(b"\n", counted)


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
