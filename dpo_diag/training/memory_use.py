"""How much memory a training's process took at most, and how much there is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def memory_use(device: torch.device) -> tuple[float, float] | None:
    """(bytes taken at most so far, bytes there are): on a GPU what tensors took of it, which the allocator's cache does
    not count in; else what the process holds now, of the machine or its container. None where it is not known."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)), float(
            torch.cuda.get_device_properties(device).total_memory
        )
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page
        limit = os.sysconf("SC_PHYS_PAGES") * page
        bound = _CGROUP.read_text(encoding="ascii").strip() if _CGROUP.is_file() else "max"
    except (OSError, ValueError, AttributeError, IndexError):  # no Linux
        return None
    return float(used), float(min(limit, int(bound)) if bound.isdigit() else limit)
