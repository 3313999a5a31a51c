"""Training without a reference through TRL's DPO trainer, which always asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dpo_diag.losses import LOSSES
from dpo_diag.training.trl_adapter import REF_SUMS


def is_reference_free(arguments: Any) -> bool:
    """Whether no term of the loss that TRL's arguments name looks at a reference; False for names that nobody knows."""
    kinds = getattr(arguments, "loss_type", None) or ()
    names = [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds]
    return bool(names) and all(name in LOSSES and not LOSSES[name].reference for name in names)


@contextmanager
def as_precomputed(holder: Any, name: str) -> Iterator[None]:
    """TRL's own switch for "the reference's log-probs are there already": with it no reference is made or called.

    `holder` is the arguments while TRL's trainer is built, the trainer while it computes a loss.
    """
    before = getattr(holder, name)
    setattr(holder, name, True)
    try:
        yield
    finally:
        setattr(holder, name, before)


def without_reference(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch for `as_precomputed` whose loss looks at no reference: its log-probs stand in as 0."""
    zero = inputs["input_ids"].new_zeros(len(inputs["input_ids"]) // 2, dtype=torch.float32)
    return {**inputs, **dict.fromkeys(REF_SUMS, zero)}
