"""What a format's reader is given and hands on: options, rows or pairs of one source, what it says of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.bars import Frames
from dpo_diag.importers.length import Length, Range, total_of_summary
from dpo_diag.importers.numbers import number
from dpo_diag.importers.rows import RowStore
from dpo_diag.importers.steps import fill_steps
from dpo_diag.losses import check_names, loss_name
from dpo_diag.records.run_info import Reduction, StepsSource
from dpo_diag.records.text_files import Skipped

LENGTHS = ("logging_steps", "total_steps", "total_epochs", "total_examples", "total_batch")
"""Facts about a training's length."""


@dataclass
class Options:
    """What the user says about a source; every field may be unknown.

    Raises:
        DiagError: a loss that is not known, a number that is out of its range.
    """

    loss: tuple[str, ...] = ()
    loss_weights: tuple[float, ...] = ()
    beta: float | None = None
    label_smoothing: float | None = None
    reference_free: bool = False
    logps: Reduction | None = None
    decimal: Literal["point", "comma"] | None = None
    trainer: str | None = None
    trainer_version: str | None = None
    logging_steps: int | None = None
    split: str | None = None
    run: str | None = None
    step: int | None = None
    scores: Path | None = None
    texts: Path | None = None

    def __post_init__(self) -> None:
        self.loss = tuple(loss_name(name) for name in self.loss)
        check_names(self.loss)
        if self.beta is not None and not (self.beta > 0 and math.isfinite(self.beta)):
            raise DiagError("beta is a positive number", where="--beta", got=self.beta, usage=True)
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 0.5:
            raise DiagError("label smoothing lies in [0, 0.5)", got=self.label_smoothing, usage=True)
        if self.loss_weights and len(self.loss_weights) != len(self.loss):
            expected = f"{len(self.loss)} numbers"
            raise DiagError("one weight per loss type", got=self.loss_weights, expected=expected, usage=True)
        if self.logging_steps is not None and self.logging_steps < 1:
            raise DiagError("--logging-steps is a positive number", got=self.logging_steps, usage=True)


@dataclass
class Facts:
    """What a source says about its training; `stated_in` names the file and line of each."""

    loss: tuple[str, ...] = ()
    beta: float | None = None
    label_smoothing: float | None = None
    reference_free: bool | None = None
    nll_weight: float | None = None
    f_divergence_type: str | None = None
    logging_steps: int | None = None
    total_steps: int | None = None
    total_epochs: float | None = None
    total_examples: int | None = None
    total_batch: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    stated_in: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, value: Any, where: str) -> None:
        """Set a fact that is not known yet."""
        if value is None or value == () or getattr(self, name) not in (None, ()):
            return
        setattr(self, name, value)
        self.stated_in[name] = where

    def merge(self, other: Facts) -> None:
        """Take what the other knows and this one does not."""
        for name, where in other.stated_in.items():
            self.take(name, getattr(other, name), where)
        self.model = {**other.model, **self.model}

    def without_length(self) -> Facts:
        """These facts but those that one of several trainings in a source has for itself."""
        other = Facts(model=self.model)
        for name, where in self.stated_in.items():
            if name not in LENGTHS:
                other.take(name, getattr(self, name), where)
        return other

    def length(
        self, summaries: Sequence[Mapping[str, Any]] = (), logging_steps: int | None = None, ended: bool = False
    ) -> Length:
        """How long the training is, by these facts and its final summaries.

        Args:
            logging_steps: as the user says; it wins over the facts'.
            ended: whether the source reaches to the end of the training; a final summary says so too.
        """
        final_rows = (s for s in reversed(summaries) if number(s.get("train_runtime")) is not None)
        summary: Mapping[str, Any] = next(final_rows, {})
        named = Range(self.total_steps, self.total_steps) if self.total_steps else None
        final = number(summary.get("epoch"))
        per_epoch = None
        if self.total_examples and self.total_batch:
            per_epoch = float(math.ceil(self.total_examples / self.total_batch))
        return Length(
            named or total_of_summary(summary),
            final if final and final > 0 else self.total_epochs,
            per_epoch,
            logging_steps or self.logging_steps,
            ended or bool(summary),
        )


@dataclass
class Parsed:
    """One source, read.

    Attributes:
        format: name of the format, as `--as` takes it.
        trainer, version: who wrote it, as far as it shows; keys of the alias table.
        store: its log rows; empty for a source of pairs.
        history: finished history rows (step, split, name, value, ...) that a source of pairs brings.
        pairs, texts, outputs: rows of those tables.
        steps, steps_from: where the rows' steps come from, for run.json and in words.
        run: name of the run that was taken, in a source that names its runs.
        n_rows: rows that the source holds, read or not; `n_read`: rows that were taken.
        splits: split -> fields of its SplitInfo that the source decides.
        details: what only this format says, for run.json.
    """

    format: str
    files: list[Path]
    skipped: Skipped
    store: RowStore
    trainer: str = "unknown"
    version: str | None = None
    history: pd.DataFrame | None = None
    pairs: pd.DataFrame | None = None
    texts: pd.DataFrame | None = None
    outputs: pd.DataFrame | None = None
    facts: Facts = field(default_factory=Facts)
    steps: StepsSource | None = None
    run: str | None = None
    steps_from: str | None = None
    n_rows: int = 0
    n_read: int = 0
    n_duplicates: int = 0
    notes: list[str] = field(default_factory=list)
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, files: list[Path], options: Options, trainer: str | None = None) -> Parsed:
        """A source of which nothing is read yet.

        Args:
            trainer: who writes this format, None for anyone; `--trainer` wins.
        """
        skipped, trainer = Skipped(), options.trainer or trainer
        store = RowStore(skipped, trainer or "any")
        return cls(name, files, skipped, store, trainer or "unknown", options.trainer_version)

    def with_steps(
        self,
        options: Options,
        frames: Frames | None = None,
        length: Length | None = None,
        resumed_at: Sequence[int] = (),
    ) -> Parsed:
        """This source when all rows are in the store: rows without a step get one, see `importers.steps`."""
        length = length or self.facts.length(self.store.summaries, options.logging_steps)
        self.steps, self.steps_from = fill_steps(self.store, frames, length, resumed_at)
        self.n_read = self.store.rows
        return self
