"""TRL's fused LM head (1.16), what it was given and what came back: kept while a loss is computed, since a term of the
loss asks the output layers once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.utils as trl_utils

from dpo_diag.models.head_tiles import Shape
from dpo_diag.models.two_heads import HeadInput


class KeptHead:
    """Stands in for TRL's fused head while a loss is computed.

    Attributes:
        call: hidden (positions, width), weight (vocabulary, width), bias, targets and the settings of the first call,
            the policy's.
        reference: the same of the last call after it; None where there was none.
        log_probs: what came back to the policy, (positions,).
    """

    def __init__(self, own: Any) -> None:
        self.own = own
        self.call: tuple[Any, ...] | None = None
        self.reference: tuple[Any, ...] | None = None
        self.log_probs: torch.Tensor | None = None

    def apply(self, *call: Any) -> Any:
        """As TRL's."""
        found = self.own.apply(*call)
        if self.call is None:
            self.call, self.log_probs = call, found[0]
        else:
            self.reference = call
        return found


@contextmanager
def kept_head() -> Iterator[KeptHead]:
    """TRL's fused heads are kept in here."""
    theirs = trl_utils._ChunkedLogProbFunction
    trl_utils._ChunkedLogProbFunction = kept = KeptHead(theirs)
    try:
        yield kept
    finally:
        trl_utils._ChunkedLogProbFunction = theirs


def of_mask(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A head's rows at the mask's positions: it may have been given those alone, or all."""
    return values[mask.reshape(-1)] if len(values) == mask.numel() else values


def head_input(call: tuple[Any, ...], mask: torch.Tensor) -> HeadInput:
    """What a kept call was given at the mask's positions."""
    hidden, weight, bias, _, temperature, _, softcap, scale = call[:8]
    return HeadInput(of_mask(hidden, mask), weight, bias, Shape(scale, softcap, temperature))


def laid_out(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A head's values (positions,) as TRL returns them, (rows, length), 0 outside `mask`: its positions may be all, or
    those of the mask alone."""
    if values.numel() == mask.numel():
        return values.view(mask.shape).masked_fill(~mask, 0)
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
