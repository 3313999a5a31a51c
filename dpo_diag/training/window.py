"""The logging window that is open when a checkpoint is written: kept in it, so that a resumed run logs the same.

TRL forgets the micro-batches since its last log call, and how many tokens it has seen; a resumed run would log the mean
of a part of the window as if it were the whole. What TRL itself has summed of the window is kept beside it.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class TrainersOwn:
    """What the trainer has summed since its last log call, on this rank, in a group of `world_size`.

    Attributes:
        means: metric -> one value a micro-batch.
        loss: sum of the steps' losses.
        losses: sum over the closed windows of the steps' losses.
        logged_at: step of the last log call.
    """

    means: Mapping[str, Sequence[float]]
    loss: float
    losses: float
    logged_at: int
    world_size: int


@dataclass
class Window:
    """What a run has measured since its last log call, and since its beginning.

    Attributes:
        open: training micro-batches since the last log call, this rank's.
        tokens_seen: TRL's counter, of all ranks; None where it is not known.
        losses: over the closed windows, the sum of each exact loss times what it is a mean over, and the sum of the
            latter; NaN where a window had none.
        theirs: the trainer's own sums; None where they are not known, or of another number of processes.
        guards: what the live guards remember, see `Guards.memory`.
        beta_factor: what a running beta has come to (`epsilon_dpo.RunningBeta`).
    """

    open: Accumulator = field(default_factory=Accumulator)
    tokens_seen: int | None = None
    losses: tuple[float, float] = (0.0, 0.0)
    theirs: TrainersOwn | None = None
    guards: Mapping[str, Any] = field(default_factory=dict)
    beta_factor: float = 1.0


def save_window(window: Window, checkpoint: str | os.PathLike[str], rank: int) -> None:
    """Write this rank's part of the open window into a checkpoint's folder."""
    rows = window.open.rows
    arrays: dict[str, Any] = {"tokens_seen": window.tokens_seen, "losses": window.losses}
    arrays["beta_factor"] = window.beta_factor
    arrays |= {f"guards/{name}": values for name, values in window.guards.items()}
    if (own := window.theirs) is not None:
        arrays |= {f"means/{name}": values for name, values in own.means.items()}
        arrays["theirs"] = own.loss, own.losses, own.logged_at, own.world_size
    if rows is not None:
        arrays |= {f"{part}/{name}": values for part in _PARTS for name, values in getattr(rows, part).items()}
        arrays |= {"pair_ids": rows.pair_ids, "rows": rows.rows, "sides": rows.sides, "packed": rows.packed}
        arrays |= {"residual": window.open.residual, "added": float(window.open.added)}
    Path(checkpoint).mkdir(parents=True, exist_ok=True)
    place = Path(checkpoint) / f"{NAME}.r{rank}.npz"
    with replacing(place) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})


def load_window(checkpoint: str | os.PathLike[str], rank: int, world_size: int) -> Window:
    """This rank's share of the window that was open, and the totals so far; nothing of a file that cannot be read.

    The run may have another number of processes now: ranks take the files in turn.
    """
    window = Window(losses=(math.nan, math.nan))
    for i, file in enumerate(sorted(Path(checkpoint).glob(f"{NAME}.r*.npz"))):
        try:
            with np.load(file, allow_pickle=False) as read:
                arrays = dict(read)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            continue
        window.tokens_seen = int(arrays["tokens_seen"])
        total, weight = arrays["losses"].tolist()
        window.losses = total, weight
        window.beta_factor = float(arrays.get("beta_factor", 1.0))
        if i % world_size == rank and "rows" in arrays:
            window.open.add(_read(arrays))
        if file.name == f"{NAME}.r{rank}.npz":
            window.theirs = _theirs(arrays, world_size)
            window.guards = _below(arrays, "guards")
    return window


def _theirs(arrays: Mapping[str, Any], world_size: int) -> TrainersOwn | None:
    if "theirs" not in arrays:
        return None
    loss, losses, logged_at, processes = arrays["theirs"].tolist()
    means = {name: values.tolist() for name, values in _below(arrays, "means").items()}
    own = TrainersOwn(means, loss, losses, int(logged_at), int(processes))
    return own if own.world_size == world_size else None


def _below(arrays: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key.removeprefix(f"{part}/"): values for key, values in arrays.items() if key.startswith(f"{part}/")}


def _read(arrays: Mapping[str, Any]) -> Batch:
    parts = {part: _below(arrays, part) for part in _PARTS}
    first, second = arrays["sides"].tolist()
    return Batch(
        arrays["pair_ids"].tolist(), arrays["rows"], (first, second), parts["policy"], parts["reference"],
        parts["of_row"], loss=0.0, added=float(arrays["added"]), expected=float(arrays["residual"]),
        packed=bool(arrays["packed"]),
    )  # fmt: skip
