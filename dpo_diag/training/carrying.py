"""What rides along from the data set to the batch: ids, rows and masks that neither the user's collator nor the model
sees."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.data_loader import SkipBatchSampler

from dpo_diag.training.batch import PADDING

Attach = Callable[[MutableMapping[str, Any], list[Mapping[str, Any]]], None]


@dataclass
class CarryingCollator:
    """A collator around the user's: takes our columns out of the examples, and lays what they say behind the batch's
    own keys (`find_batch_size` and the like look at a batch's first tensor, hence behind).

    Args:
        collator: the user's; it sees exactly the examples that it would see otherwise.
        columns: ours.
        attach: adds our entries, if there is anything to add, to a batch that has a tensor `input_ids`, from the
            examples as they came.
    """

    collator: Callable[[list[Any]], Any]
    columns: Collection[str]
    attach: Attach

    def __call__(self, examples: list[Any]) -> Any:
        if not all(isinstance(e, Mapping) for e in examples):
            return self.collator(examples)
        batch = self.collator([{k: v for k, v in e.items() if k not in self.columns} for e in examples])
        if isinstance(batch, MutableMapping) and torch.is_tensor(batch.get("input_ids")):
            self.attach(batch, examples)
        return batch


def taken_out(inputs: Mapping[str, Any], columns: Collection[str]) -> tuple[dict[str, Any], list[Any]]:
    """The inputs without our entries (a new dict; the caller's keeps them), and those entries in order, None where
    there is none."""
    entries = [inputs[k] if torch.is_tensor(inputs.get(k)) else None for k in columns]
    return {k: v for k, v in inputs.items() if k not in columns}, entries


def mark_padding(entry: torch.Tensor, first: int, remainder: int) -> None:
    """Name the repeated examples of an epoch's last batch, in place: their row becomes `PADDING`.

    Args:
        entry: rows in the data set, (examples,), or (examples, 2 or more) with the row in the second column.
        first: place of this process's first example among those of all processes.
        remainder: examples of that batch which are not repeated; they come first.
    """
    rows = entry if entry.dim() == 1 else entry[:, 1]
    rows[max(remainder - first, 0) :] = PADDING


def remainder_of(loader: Any) -> int:
    """Examples of an epoch's last batch, over all processes, that are not repeated; 0 or less where none is.

    accelerate 1.15 forgets it (-1) of a loader that skips what a resumed run has seen: its sampler has no batch size.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, SkipBatchSampler) or loader._drop_last:
        return int(loader.remainder)
    own = sampler.batch_sampler
    processes = 1 if getattr(own, "split_batches", False) else getattr(own, "num_processes", 1)
    return int(len(loader.dataset) % (own.batch_size * processes))
