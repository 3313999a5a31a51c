"""Where a guard keeps the batch of a step that went wrong, below its run folder: one folder a step."""

from __future__ import annotations

from pathlib import Path

from dpo_diag.documents import read_json
from dpo_diag.errors import DiagError

FILE = "step.json"
"""Describes the step; written last, so that a folder without it was not written to its end."""
NON_FINITE = "non_finite_"
"""How the codes of guards begin that saw NaN or infinity."""


def kept_place(step: int) -> str:
    """The folder of a step's batch, below the run folder."""
    return f"alerts/step-{step:08d}"


def kept_batch(run: Path, guard: str) -> Path | None:
    """The first kept step of a guard, which for NaN and infinity is the first where any of them was seen: where it
    began says more than where the run ended; None where none is kept."""
    family = NON_FINITE if guard.startswith(NON_FINITE) else guard
    for file in sorted(run.glob(f"alerts/step-*/{FILE}")):
        try:
            codes = read_json(file, "the step's description").get("codes")
        except (DiagError, AttributeError):
            continue  # a damaged one cannot be replayed either
        if any(str(code).startswith(family) for code in codes or ()):
            return file.parent
    return None
