"""TRL's fused LM head (1.16) computed by `models.tiled_head`: the same outputs at a part of the cost, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import trl.trainer.utils as trl_utils

from dpo_diag.models.tiled_head import HeadOutputs, tiled_head
from dpo_diag.training.head_probe import HeadProbe


class TiledStandIn:
    """What stands in the place of TRL's autograd function while a forward runs: its call, its five outputs.

    Args:
        probe: gets what it wants to know, where it listens.
        rows: bool (positions,): those that are wanted; the others get zeros. None: all.
    """

    def __init__(self, probe: HeadProbe | None = None, rows: torch.Tensor | None = None) -> None:
        self._probe, self._rows = probe, rows

    def apply(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
        temperature: float, chunk_size: int, softcap: float | None = None, scale: float = 1.0,
        outputs: tuple[str, ...] = ("log_probs",),
    ) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
        """As `trl.kernels.chunked_logprob.ChunkedLogProbFunction.apply`."""
        probe = self._probe if self._probe is not None and self._probe.listens else None
        wanted = {*outputs, *(probe.wants if probe is not None else ())} - {"log_probs"}
        rows = self._rows
        found = tiled_head(
            hidden if rows is None else hidden[rows], weight, bias, targets if rows is None else targets[rows],
            outputs=wanted, temperature=temperature, scale=scale, softcap=softcap,
        )  # fmt: skip
        if probe is not None:
            probe.add(found.greedy_logp, found.is_top5, len(found.log_probs))
        own = found[: HeadOutputs._fields.index("is_top1") + 1]
        if rows is None:
            return own
        return tuple(None if v is None else v.new_zeros(len(hidden)).masked_scatter(rows, v) for v in own)


@contextmanager
def tiled(device: torch.device, probe: HeadProbe | None = None, rows: torch.Tensor | None = None) -> Iterator[None]:
    """TRL's fused heads work in tiles in here, on a CPU; elsewhere TRL's kernels do better."""
    with _swapped(TiledStandIn(probe, rows)) if device.type == "cpu" else nullcontext():
        yield


@contextmanager
def _swapped(stand_in: Any) -> Iterator[None]:
    theirs = trl_utils._ChunkedLogProbFunction
    trl_utils._ChunkedLogProbFunction = stand_in
    try:
        yield
    finally:
        trl_utils._ChunkedLogProbFunction = theirs
