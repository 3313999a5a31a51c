"""The processes of one training, as torch.distributed knows them; one process where it was not started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from dpo_diag.errors import DiagError

T = TypeVar("T")


def place() -> tuple[int, int]:
    """(rank, number of processes) of the default process group; (0, 1) without one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def everyones(value: T) -> list[T]:
    """The value of each process, by rank; every process must call it."""
    world = place()[1]
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T]) -> list[T]:
    """What the work gives on each process, by rank; where it fails on one, it fails on all, so that none waits for
    another for ever. Every process must call it.

    Raises:
        DiagError: the work failed on another process.
    """
    own: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as error:
        own = error
    outcomes = everyones((result, None if own is None else f"{type(own).__name__}: {own}"))
    if own is not None:
        raise own
    for rank, (_, failure) in enumerate(outcomes):
        if failure is not None:
            raise DiagError("another process failed", where=f"rank {rank}", got=failure)
    return [value for value, _ in outcomes]
