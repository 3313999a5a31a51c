"""A work list under torchrun or `accelerate launch`: every process takes the next part that none has done.

No process group is made and nothing is sent: processes meet in the folder that they write to, and one that dies takes
its claim with it. On machines that share no folder (a URL) each process does its own share, and what a dead one leaves
is done by the next start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

from dpo_diag.inference.shared_work import Job, held, measured
from dpo_diag.inference.work_list import Item, Shelf
from dpo_diag.models.checkpoints import Loader
from dpo_diag.models.held import HeldLoader

PAUSE = 0.5
"""Seconds between two looks at what others are doing."""


def place() -> tuple[int, int]:
    """(rank, number of processes) as the launcher says; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def work_by_rank(
    job: Job, items: Sequence[Item], shelf: Shelf, loader: Loader, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Do parts until all are done, by this process or another. Every process but the first may leave before."""
    rank, world = place()
    start = rank * len(items) // world
    mine = set(items[rank::world])
    # Ranks begin apart, so that each loads another checkpoint; the one that is in memory goes first.
    order = [*items[start:], *items[:start]]
    with held(replace(loader, device=_device(loader.device))) as keeping:
        while missing := [item for item in order if item.name not in shelf.names()]:
            if rank and shelf.is_assembled(items):
                return
            if not shelf.shared and not mine.intersection(missing):
                if rank:
                    return
                time.sleep(PAUSE)
                continue
            missing.sort(key=lambda item: item.checkpoint != keeping.held)
            if not any(_done(job, item, shelf, keeping, mine, say) for item in missing):
                time.sleep(PAUSE)


def _done(job: Job, item: Item, shelf: Shelf, loader: HeldLoader, mine: set[Item], say: Callable[[str], None]) -> bool:
    """Whether this process did the part now."""
    with shelf.claim(item) if shelf.shared else nullcontext(item in mine) as claimed:
        if claimed:
            say(str(item))
            shelf.put(item.name, measured(job, item, loader))
    return claimed


def _device(device: str) -> str:
    """The accelerator of this process's local rank, where the device was not named."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if device == "auto" and local and torch.cuda.is_available() else device
