"""The logging window that is open when a checkpoint is written: kept beside it, so that a resumed run logs the same.

TRL forgets the micro-batches since its last log call, and how many tokens it has seen; a resumed run would log the mean
of a part of the window as if it were the whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from dpo_diag.training.batch import Batch
from dpo_diag.training.gather import Accumulator

NAME = "dpo_diag_window"
"""File in a checkpoint folder, one a rank: NAME.r0.npz."""
_PARTS = ("policy", "reference", "of_row")


def save_window(window: Accumulator, checkpoint: str | os.PathLike[str], rank: int, tokens_seen: int) -> None:
    """Write this rank's part of the open window into a checkpoint's folder."""
    rows = window.rows
    arrays: dict[str, Any] = {"tokens_seen": tokens_seen}
    if rows is not None:
        arrays |= {f"{part}/{name}": values for part in _PARTS for name, values in getattr(rows, part).items()}
        arrays |= {"pair_ids": rows.pair_ids, "rows": rows.rows, "sides": rows.sides, "packed": rows.packed}
        arrays |= {"residual": window.residual, "added": float(window.added)}
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    with (Path(checkpoint) / f"{NAME}.r{rank}.npz").open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})


def load_window(checkpoint: str | os.PathLike[str], rank: int, world_size: int) -> tuple[Accumulator, int | None]:
    """This rank's share of the window that was open, and the tokens seen so far (None: not known).

    The run may have another number of processes now: ranks take the files in turn.
    """
    window, seen = Accumulator(), None
    for i, file in enumerate(sorted(Path(checkpoint).glob(f"{NAME}.r*.npz"))):
        with np.load(file, allow_pickle=False) as arrays:
            seen = int(arrays["tokens_seen"])
            if i % world_size == rank and "rows" in arrays:
                window.add(_read(dict(arrays)))
    return window, seen


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
