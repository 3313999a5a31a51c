"""Several checkpoints in memory at once, as many as fit."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.models.checkpoints import Checkpoint, Loader, adapter_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def default_budget() -> int:
    """Half of the memory that is free now, in bytes; 4 GB where the system does not tell."""
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    except (ValueError, OSError, AttributeError):
        return 4 * 10**9


@dataclass
class _Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stack: ExitStack
    size: int


class ModelCache:
    """Checkpoints, loaded when asked, within `budget` bytes of weights; the least recently asked goes first.

    Adapters of one base share it: the base stays, one adapter is on it at a time. A model that is larger than the
    budget by itself is still loaded, alone.
    """

    def __init__(self, budget: int, **loader: Any) -> None:
        self.budget, self._settings = budget, loader
        self._models: OrderedDict[Checkpoint, _Loaded] = OrderedDict()
        self._bases: dict[str, Loader] = {}
        self.loads = 0

    @property
    def loaded(self) -> list[Checkpoint]:
        """Least recently asked first."""
        return list(self._models)

    @property
    def size(self) -> int:
        """Bytes of weights in memory."""
        return sum(loaded.size for loaded in self._models.values())

    def fits(self, checkpoint: Checkpoint) -> bool:
        """Whether it is in memory, or can be loaded without another one having to go."""
        return checkpoint in self._models or not self._models or self.size + self._expected(checkpoint) <= self.budget

    def open(self, checkpoint: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """(model, tokenizer), valid until the next call."""
        loaded = self._models.get(checkpoint)
        if loaded is None:
            base = adapter_base(checkpoint) if checkpoint.is_adapter else None
            for other in [c for c in self._models if base and c.is_adapter and adapter_base(c) == base]:
                self._drop(other, keep_base=True)
            expected = self._expected(checkpoint)
            while self._models and self.size + expected > self.budget:
                self._drop(next(iter(self._models)))
            loader = self._bases.setdefault(base, Loader(**self._settings)) if base else Loader(**self._settings)
            stack = ExitStack()
            model, tokenizer = stack.enter_context(loader.open(checkpoint))
            self.loads += 1
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            loaded = self._models[checkpoint] = _Loaded(model, tokenizer, stack, size)
            while len(self._models) > 1 and self.size > self.budget:
                self._drop(next(iter(self._models)))
        self._models.move_to_end(checkpoint)
        return loaded.model, loaded.tokenizer

    def _expected(self, checkpoint: Checkpoint) -> int:
        """Bytes that its weights will take: like its neighbours of the same run, else its files in float32."""
        if self._models:
            return max(loaded.size for loaded in self._models.values())
        folder = Path(checkpoint.path)
        return 2 * sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder.is_dir() else 0

    def _drop(self, checkpoint: Checkpoint, keep_base: bool = False) -> None:
        loaded = self._models.pop(checkpoint)
        loaded.stack.close()
        if checkpoint.is_adapter and not keep_base:
            self._bases.pop(adapter_base(checkpoint), None)

    def close(self) -> None:
        """Drop all."""
        while self._models:
            self._drop(next(iter(self._models)))
