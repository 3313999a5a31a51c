"""A model in half precision, computing in float32 for a while: what it is exactly, before rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

HALF = (torch.bfloat16, torch.float16)
Place = tuple[dict[str, Any], str, torch.Tensor]
"""A module's tensors by name, one of these names, and the tensor that it names."""


@contextmanager
def in_float32(model: torch.nn.Module, backward: bool = False) -> Iterator[None]:
    """The model with float32 weights, its matrix products and autocast at full precision; all as before on leaving.

    A block (an entry of a list of layers) has float32 weights only while it runs, so that the memory needed beyond the
    model's own is that of its embeddings and of one block; with `backward`, a pass that reads the weights again, all
    have them all the time. Copies stand in the place of the weights, tied ones once; the weights themselves are not
    touched: a tensor that is given data of another type forgets who listens to its gradient (DDP's reducer).
    """
    lists = [] if backward else [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    nested = {id(inner) for outer in lists for block in outer for inner in block.modules()}
    blocks = [block for one in lists if id(one) not in nested for block in one]
    inside = {id(part) for block in blocks for part in block.modules()}
    precision = torch.get_float32_matmul_precision()
    device = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(_put_back, _widen(part for part in model.modules() if id(part) not in inside))
        for block in blocks:
            _widened_in_forward(block, stack)
        yield


def _widened_in_forward(block: torch.nn.Module, stack: ExitStack) -> None:
    kept: list[Place] = []

    def before(*_: Any) -> None:
        kept.extend(_widen(block.modules()))

    def after(*_: Any) -> None:
        _put_back(kept)
        kept.clear()

    stack.callback(after)
    stack.callback(block.register_forward_pre_hook(before).remove)
    stack.callback(block.register_forward_hook(after).remove)


def _widen(modules: Iterable[torch.nn.Module]) -> list[Place]:
    """Put copies in the place of the weights and buffers in half precision; returns what stood where."""
    kept: list[Place] = []
    copies: dict[int, torch.Tensor] = {}
    for module in modules:
        for own in (module._parameters, module._buffers):
            for name, t in own.items():
                if t is not None and t.dtype in HALF:
                    if id(t) not in copies:
                        copies[id(t)] = _copied(t)
                    kept.append((own, name, t))
    # Only now: where the memory does not suffice, nothing has been exchanged.
    for tensors, name, t in kept:
        tensors[name] = copies[id(t)]
    return kept


def _copied(t: torch.Tensor) -> torch.Tensor:
    wide = t.detach().float()
    return torch.nn.Parameter(wide, t.requires_grad) if isinstance(t, torch.nn.Parameter) else wide


def _put_back(kept: Iterable[Place]) -> None:
    for own, name, t in kept:
        own[name] = t
