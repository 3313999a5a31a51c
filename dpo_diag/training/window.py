"""The logging window that is open when a checkpoint is written: kept beside it, so that a resumed run logs the same.

TRL forgets the micro-batches since its last log call, and how many tokens it has seen; a resumed run would log the mean
of a part of the window as if it were the whole.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpo_diag.records.files import replacing
from dpo_diag.training.batch import Batch
from dpo_diag.training.gather import Accumulator

NAME = "dpo_diag_window"
"""File in a checkpoint folder, one a rank: NAME.r0.npz."""
_PARTS = ("policy", "reference", "of_row")


@dataclass
class Window:
    """What a run has measured since its last log call, and since its beginning.

    Attributes:
        open: training micro-batches since the last log call, this rank's.
        tokens_seen: TRL's counter, of all ranks; None where it is not known.
        losses: over the closed windows, the sum of each exact loss times what it is a mean over, and the sum of the
            latter; NaN where a window had none.
    """

    open: Accumulator = field(default_factory=Accumulator)
    tokens_seen: int | None = None
    losses: tuple[float, float] = (0.0, 0.0)


def save_window(window: Window, checkpoint: str | os.PathLike[str], rank: int) -> None:
    """Write this rank's part of the open window into a checkpoint's folder."""
    rows = window.open.rows
    arrays: dict[str, Any] = {"tokens_seen": window.tokens_seen, "losses": window.losses}
    if rows is not None:
        arrays |= {f"{part}/{name}": values for part in _PARTS for name, values in getattr(rows, part).items()}
        arrays |= {"pair_ids": rows.pair_ids, "rows": rows.rows, "sides": rows.sides, "packed": rows.packed}
        arrays |= {"residual": window.open.residual, "added": float(window.open.added)}
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    place = Path(checkpoint) / f"{NAME}.r{rank}.npz"
    with replacing(place) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})


def load_window(checkpoint: str | os.PathLike[str], rank: int, world_size: int) -> Window:
    """This rank's share of the window that was open, and the totals so far.

    The run may have another number of processes now: ranks take the files in turn.
    """
    window = Window(losses=(math.nan, math.nan))
    for i, file in enumerate(sorted(Path(checkpoint).glob(f"{NAME}.r*.npz"))):
        with np.load(file, allow_pickle=False) as arrays:
            window.tokens_seen = int(arrays["tokens_seen"])
            total, weight = arrays["losses"].tolist()
            window.losses = total, weight
            if i % world_size == rank and "rows" in arrays:
                window.open.add(_read(dict(arrays)))
    return window


def _read(arrays: dict[str, Any]) -> Batch:
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for key, values in arrays.items():
        part, _, name = key.partition("/")
        if name:
            parts[part][name] = values
    first, second = arrays["sides"].tolist()
    return Batch(
        arrays["pair_ids"].tolist(), arrays["rows"], (first, second), parts["policy"], parts["reference"],
        parts["of_row"], loss=0.0, added=float(arrays["added"]), expected=float(arrays["residual"]),
        packed=bool(arrays["packed"]),
    )  # fmt: skip
