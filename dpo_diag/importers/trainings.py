"""Several trainings in one text: which rows belong to which, which one is resumed by which, and which one is wanted.

`train.py >> train.log` after an out-of-memory error, a resume from a checkpoint, SFT before DPO. A training that begins
again from its first step is another one; one that goes on from a checkpoint is the same, its last row of a step kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.importers.bars import UNKNOWN, Counter, Frames
from dpo_diag.importers.keys import EPOCH_KEYS, STEP_KEYS
from dpo_diag.importers.numbers import is_missing, number, step_number
from dpo_diag.importers.parsed import Facts
from dpo_diag.importers.rows import RowStore
from dpo_diag.records.text_files import Skipped

PREFERENCE = ("rewards/", "logps/", "log_odds")


@dataclass
class Place:
    """Where in its training a row stands, as far as it shows: its own step, its epoch, the bar beside it."""

    step: int | None = None
    epoch: float | None = None
    bar: Counter = UNKNOWN

    @classmethod
    def of(cls, row: Mapping[str, Any], step: int | None = None, bar: Counter = UNKNOWN) -> Place:
        """Where a row stands; `step` is that of the text before it, the row's own wins."""
        own = next((s for key in STEP_KEYS if key in row and (s := step_number(row[key])) is not None), step)
        epoch = next((e for key in EPOCH_KEYS if key in row and (e := number(row[key])) is not None), None)
        return cls(own, epoch, bar)

    def is_before(self, other: Place) -> bool:
        """Whether it surely stands before the other, by the first of step, epoch and bar that both know."""
        if self.step is not None and other.step is not None:
            return self.step < other.step
        if self.epoch is not None and other.epoch is not None:
            return self.epoch < other.epoch - 1e-9
        return self.bar != UNKNOWN and self.bar[1] == other.bar[1] and self.bar[0] < other.bar[0]


def is_training_row(row: Mapping[str, Any]) -> bool:
    """Whether a row holds means of training batches, by its keys; NaN may stand for what was not logged."""
    own = (value for key, value in row.items() if key == "loss" or str(key).startswith(("train/", "rewards/")))
    return any(not (is_missing(value) or value != value) for value in own)


@dataclass
class Training:
    """The rows of one training, or of one part of a resumed one.

    Attributes:
        start: the first counter of its own bar above 0.
        first, second, last: where its training rows stand.
        facts: what the text between it and the training before states.
    """

    store: RowStore
    frames: Frames = field(default_factory=Frames)
    facts: Facts = field(default_factory=Facts)
    bar_total: int | None = None
    start: Counter = UNKNOWN
    first: Place | None = None
    second: Place | None = None
    last: Place | None = None
    n_train: int = 0
    resumed_at: list[int] = field(default_factory=list)

    @property
    def is_preference(self) -> bool:
        return any(name.startswith(PREFERENCE) for _, name in self.store.metrics())

    @property
    def ended(self) -> bool:
        """Whether its final summary or the end of its bar was seen."""
        at_end = self.last is not None and self.last.bar[0] == self.last.bar[1] > 0
        return bool(self.store.summaries) or at_end

    def note(self, place: Place) -> None:
        """Take note of where a training row stands."""
        if self.first is None:
            self.first = place
        elif self.second is None:
            self.second = place
        self.last = place
        self.n_train += 1

    def goes_on(self, later: Training) -> bool:
        """Whether `later` resumes this training: it begins behind this one's first row, in a bar of the same length."""
        if self.store.summaries or self.first is None or later.first is None:
            return False
        if self.bar_total is not None and later.bar_total is not None and self.bar_total != later.bar_total:
            return False
        if self.first.step is not None and later.first.step is not None:
            # A single row behind the next ones' first is a late line, or is written again.
            return self.n_train == 1 or self.first.step < later.first.step
        if later.start != UNKNOWN and self.first.bar != UNKNOWN:
            return later.start[0] > self.first.bar[0]
        return self.first.is_before(later.first) and not _begins_at_0(later)

    def resume(self, later: Training) -> None:
        """Take the rows of the part that goes on from a checkpoint of this one."""
        self.frames.extend(later.frames, self.store.rows, later.store.rows)
        self.resumed_at += [self.store.rows, *(self.store.rows + at for at in later.resumed_at)]
        self.store.extend(later.store)
        self.last, self.n_train = later.last, self.n_train + later.n_train
        self.facts.merge(later.facts)


def _begins_at_0(training: Training) -> bool:
    """Whether its first row lies one interval from the start, as the epochs of its first two rows show."""
    if training.first is None or training.second is None:
        return False
    one, two = training.first.epoch, training.second.epoch
    return one is not None and two is not None and one < two and one <= 1.5 * (two - one)


class Trainings:
    """The trainings of one text, row after row.

    Attributes:
        current: the one that rows are added to.
    """

    def __init__(self, skipped: Skipped, trainer: str) -> None:
        self._skipped, self._trainer = skipped, trainer
        self._parts: list[Training] = []
        self.current = self.begin()

    def begin(self) -> Training:
        """From now on rows are of another training, or of the next part of a resumed one."""
        self.current = Training(RowStore(self._skipped, self._trainer))
        self._parts.append(self.current)
        return self.current

    def add(self, row: Mapping[str, Any], line: int, step: int | None = None) -> None:
        """Take a row of a source whose rows say themselves where they stand."""
        is_train = is_training_row(row)
        place = Place.of(row, step)
        if is_train and self.ends_before(place):
            self.begin()
        block = self.current.store.add(row, line, step)
        if block is not None and is_train:
            self.current.note(place)

    def ends_before(self, place: Place) -> bool:
        """Whether a training row at this place cannot follow the rows so far."""
        last = self.current.last
        return bool(self.current.store.summaries) or (last is not None and place.is_before(last))

    @cached_property
    def chained(self) -> list[Training]:
        """When all rows are in: every training with the parts that resume it; without those that hold no rows, unless
        none does."""
        trainings: list[Training] = []
        for part in self._parts:
            if part.store.rows == 0 and not part.store.summaries:
                continue
            if trainings and trainings[-1].goes_on(part):
                trainings[-1].resume(part)
            else:
                trainings.append(part)
        return trainings or self._parts[:1]

    def taken(self, run: str | None) -> tuple[Training, list[str]]:
        """The training that is wanted, and what a reader should know of the others.

        The last preference training; one of a single row only where there is no other.

        Args:
            run: its number in the text, from 1, as `--run` names it.

        Raises:
            DiagError: no such number.
        """
        trainings = self.chained
        kinds = [t for t in trainings if t.is_preference] or trainings
        taken = next((t for t in reversed(kinds) if t.n_train != 1), kinds[-1])
        if run is not None:
            if not (run.isdigit() and 1 <= int(run) <= len(trainings)):
                expected = f"1 to {len(trainings)}: the trainings in the file, in their order"
                raise DiagError("no such training", where="--run", got=run, expected=expected, usage=True)
            taken = trainings[int(run) - 1]
        notes = []
        if taken.resumed_at:
            times = "once" if len(taken.resumed_at) == 1 else f"{len(taken.resumed_at)} times"
            notes.append(f"resumed from a checkpoint {times}: of each step the last row is kept")
        if len(trainings) > 1:
            number, n = trainings.index(taken) + 1, len(trainings)
            rows = sum(t.store.rows for t in trainings if t is not taken)
            notes.append(
                f"{n} trainings in this file: number {number} is taken ({taken.store.rows} rows), {n - 1} left out "
                f"({rows} rows; --run NUMBER takes another)"
            )
        return taken, notes
