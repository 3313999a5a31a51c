"""The checkpoints that a training writes: after how many steps, and which of them are whole."""

from __future__ import annotations

import os
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError


def checkpoint_step(checkpoint: str | os.PathLike[str]) -> int:
    """Optimizer steps done when a checkpoint folder was written, from its trainer_state.json."""
    file = Path(checkpoint) / TRAINER_STATE_NAME
    try:
        return int(parse_json(file.read_text(encoding="utf-8"))["global_step"])
    except (OSError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DiagError(
            "the checkpoint does not say its step", where=file, got=error, hint="resume from a complete checkpoint"
        ) from error


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The last checkpoint in a folder that was written whole; None where there is none.

    transformers writes trainer_state.json last: a training that was stopped while it wrote leaves a folder without it.
    """
    whole: dict[int, Path] = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            whole[checkpoint_step(path)] = path
        except DiagError:
            continue
    return os.fspath(whole[max(whole)]) if whole else None
