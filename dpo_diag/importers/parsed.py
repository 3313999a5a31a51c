"""What an importer hands on: rows or pairs of one source, and what the source says about its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.importers.rows import RowStore
from dpo_diag.records.text_files import Skipped


@dataclass
class Options:
    """What the user says about a source; every field may be unknown."""

    loss: tuple[str, ...] = ()
    loss_weights: tuple[float, ...] = ()
    beta: float | None = None
    label_smoothing: float | None = None
    logps: str | None = None
    trainer: str | None = None
    trainer_version: str | None = None
    logging_steps: int | None = None
    split: str | None = None
    run: str | None = None
    scores: Path | None = None
    texts: Path | None = None


@dataclass
class Facts:
    """What a source says about its training, each with the file and line that says it (`said`)."""

    loss: tuple[str, ...] = ()
    beta: float | None = None
    label_smoothing: float | None = None
    nll_weight: float | None = None
    f_divergence_type: str | None = None
    logging_steps: int | None = None
    total_steps: int | None = None
    total_epochs: float | None = None
    model: dict[str, Any] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, value: Any, where: str) -> None:
        """Set a fact that is not known yet."""
        if value is None or value == () or getattr(self, name) not in (None, ()):
            return
        setattr(self, name, value)
        self.said[name] = where

    def merge(self, other: Facts) -> None:
        """Take what the other knows and this one does not."""
        for name, where in other.said.items():
            self.take(name, getattr(other, name), where)
        self.model = {**other.model, **self.model}


@dataclass
class Parsed:
    """One source, read.

    Attributes:
        format: name of the format, as `--as` takes it.
        trainer, version: who wrote it, as far as it shows; keys of the alias table.
        store: log rows (None for per-pair sources).
        history: finished history rows (step, split, name, value, ...) that a per-pair source or `--scores` brings.
        pairs, texts: rows of those tables.
        found: rows that the source holds (read or not); `read`: rows that were taken.
    """

    format: str
    files: list[Path]
    skipped: Skipped
    trainer: str = "unknown"
    version: str | None = None
    store: RowStore | None = None
    history: pd.DataFrame | None = None
    pairs: pd.DataFrame | None = None
    texts: pd.DataFrame | None = None
    facts: Facts = field(default_factory=Facts)
    steps_from: str | None = None
    found: int = 0
    read: int = 0
    duplicates: int = 0
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


Importer = Callable[[Path, Options], Parsed]
