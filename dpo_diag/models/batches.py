"""Sequences of token ids as batches: which go together, how they are padded, what a model's forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def by_length(lengths: Sequence[int], batch_size: int, *, equal_only: bool = False) -> list[list[int]]:
    """Indices in batches, longest first, so that padding is little and memory runs out at once or not at all.

    Among equals the order is kept: the same input gives the same batches every time. [] for nothing.

    Args:
        equal_only: sequences of different lengths never share a batch (for models that cannot be padded).
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = batches[-1] if batches else []
        if not last or len(last) == batch_size or (equal_only and lengths[i] != lengths[last[0]]):
            batches.append([])
        batches[-1].append(i)
    return batches


def padded(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), each int64 (sequences, longest), padded on the right or the left."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    # Padded here rather than by the tokenizer, whose padding side belongs to the training that goes on around.
    for i, sequence in enumerate(sequences):
        span = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[i, span] = torch.tensor(list(sequence), dtype=torch.long)
        mask[i, span] = 1
    return ids.to(device), mask.to(device)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to pad with: masks decide what counts, so any will do where the tokenizer names none."""
    return next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's first weight is."""
    return next(model.parameters()).device


def forward_parameters(model: Any) -> set[str]:
    """Names of the arguments that the model's forward takes; those of the model below for a PEFT wrapper."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(type(base).forward).parameters)


def empty_cache(config: Any) -> Any:
    """A cache for the keys and values of a model of this configuration; transformers before 4.56 asks for none."""
    from transformers import DynamicCache

    takes_config = "config" in inspect.signature(DynamicCache.__init__).parameters
    return DynamicCache(config=config) if takes_config else DynamicCache()
