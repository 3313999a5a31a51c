"""The model that trains, under whatever a trainer put around it: found as it stands on the device, never copied.

DDP, DataParallel, DeepSpeed's engine and torch.compile each hold the module that they wrap. FSDP2 changes the module in
place; its weights are shards until a forward gathers them, so that every process has to take part in every forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from dpo_diag.errors import DiagError

_HOLDS = {"DistributedDataParallel": "module", "DataParallel": "module", "DeepSpeedEngine": "module"}


def inner_model(model: Any) -> Any:
    """The model itself: without DDP, DataParallel, DeepSpeed's engine and torch.compile around it, in any order."""
    while True:
        held = getattr(model, "_orig_mod", None)  # torch.compile
        if held is None and (name := _HOLDS.get(type(model).__name__)) is not None:
            held = getattr(model, name)
        if held is None:
            return model
        model = held


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a forward needs all processes: the weights are FSDP2's (or tensor parallel) shards.

    Raises:
        DiagError: weights that only a wrapper's own forward gathers (FSDP1, ZeRO-3).
    """
    flat = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if flat or any(hasattr(p, "ds_id") for p in model.parameters()):
        raise DiagError(
            "the model is sharded in a way that nothing but training's own forward can gather",
            got="FSDP1" if flat else "DeepSpeed ZeRO-3", expected="FSDP2 (fsdp_version: 2), ZeRO-1 or 2, or DDP",
        )  # fmt: skip
    return any(hasattr(p, "device_mesh") for p in model.parameters())  # a DTensor


@contextmanager
def as_it_stands(model: torch.nn.Module, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Forwards in here compute in the training's precision, and no compiled graph is made, used or counted: other
    shapes than training's would fill its cache, and training itself would fall back to eager."""
    device = next(model.parameters()).device.type
    stance: Any = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    with stance("force_eager") if stance is not None else nullcontext():
        if autocast is None:
            yield
        else:
            # Without the cache: a cast weight that stays in it would be what training reads after its next update.
            with torch.autocast(device, dtype=autocast, cache_enabled=False):
                yield
