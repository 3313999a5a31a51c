"""A run folder that finished checkpoints are measured into: what it holds stays, and is not measured again."""

from __future__ import annotations

import os
from collections.abc import Iterable

from dpo_diag.models.checkpoints import Checkpoint, find_checkpoints
from dpo_diag.records.adding import KEEP_ALL, added_to

__all__ = ["KEEP_ALL", "Checkpoints", "added_to", "as_checkpoints"]

Checkpoints = Iterable[str | os.PathLike[str] | Checkpoint]


def as_checkpoints(checkpoints: Checkpoints) -> list[Checkpoint]:
    """Checkpoints as they are, and the others found by name (see `find_checkpoints`)."""
    entries = list(checkpoints)
    ready = [c for c in entries if isinstance(c, Checkpoint)]
    named = [c for c in entries if not isinstance(c, Checkpoint)]
    return [*ready, *(find_checkpoints(named) if named or not ready else [])]
