"""A loss that TRL lacks: the squared hinge of the margin."""

from __future__ import annotations

from dpo_diag.losses import LOSSES, Loss, LossSpec, Pairs
from dpo_diag.losses.registry import Values


def squared_hinge(spec: LossSpec, pairs: Pairs) -> Values:
    return pairs.ops.at_least(1.0 - pairs.logits(spec), 0.0) ** 2


LOSSES.add("toy_hinge", Loss(squared_hinge, "a toy"))
