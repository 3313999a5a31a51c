"""A model in half precision, computing in float32 for a while: what it is exactly, before rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

HALF = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(model: torch.nn.Module, backward: bool = False) -> Iterator[None]:
    """The model with float32 weights, its matrix products and autocast at full precision; all as before on leaving.

    A block (an entry of a list of layers) has float32 weights only while it runs, so that the memory needed beyond the
    model's own is that of its embeddings and of one block; with `backward`, a pass that reads the weights again, all
    have them all the time. The half-precision weights are set aside, not converted back: they are the same tensors
    afterwards, tied ones included.
    """
    lists = [] if backward else [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    nested = {id(inner) for outer in lists for block in outer for inner in block.modules()}
    blocks = [block for one in lists if id(one) not in nested for block in one]
    inside = {id(t) for block in blocks for t in _halves(block)}
    precision = torch.get_float32_matmul_precision()
    device = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(torch.autocast(device, enabled=False))
        outside = [t for t in _halves(model) if id(t) not in inside]
        stack.callback(_put_back, _widen(outside))
        for block in blocks:
            if _halves(block):
                _widened_in_forward(block, stack)
        yield


def _widened_in_forward(block: torch.nn.Module, stack: ExitStack) -> None:
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(*_: Any) -> None:
        kept.extend(_widen(_halves(block)))

    def after(*_: Any) -> None:
        _put_back(kept)
        kept.clear()

    stack.callback(after)
    stack.callback(block.register_forward_pre_hook(before).remove)
    stack.callback(block.register_forward_hook(after).remove)


def _halves(module: torch.nn.Module) -> list[torch.Tensor]:
    """Weights and buffers in half precision, each once."""
    own: Iterable[torch.Tensor] = (*module.parameters(), *module.buffers())
    return list({id(t): t for t in own if t.dtype in HALF}.values())


def _widen(tensors: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each tensor with the data that it had."""
    kept = [(t, t.data) for t in tensors]
    for t, data in kept:
        t.data = data.float()
    return kept


def _put_back(kept: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for t, data in kept:
        t.data = data
