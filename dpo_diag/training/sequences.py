"""Which tokens of an SFT example are the response, so that response and prompt are measured apart and a wrong loss mask
shows at once.

Which tokens are the response is taken from the data (prompt and completion, or the assistant's turns of a
conversation), not from the loss mask: otherwise training on the user's turns would look like a long response.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from dpo_diag.training.turns import assistant_tokens

ROW, RESPONSE = "_dpo_diag_row", "_dpo_diag_response"
"""Columns and batch entries: the row in the data set; 1 for a response token, 0 for any other, -1 for not known."""


def _row(example: dict[str, Any], index: int) -> dict[str, int]:
    return {ROW: index}


def add_rows(dataset: Any, num_proc: int | None = None) -> Any:
    """A map-style data set with the row column; any other unchanged."""
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom" or ROW in dataset.column_names:
        return dataset
    return dataset.map(_row, with_indices=True, num_proc=num_proc, desc="Numbering rows")


def _cut(values: Sequence[int], max_length: int | None, keep_end: bool) -> list[int]:
    """As the trainer cuts a sequence."""
    if max_length is None:
        return list(values)
    return list(values[-max_length:] if keep_end else values[:max_length])


@dataclass
class MarkResponse:
    """Maps a prepared example to its response mask, as long as its `input_ids`.

    Args:
        tokenizer, chat_template: of the trainer.
        max_length, keep_end: how the trainer cut `input_ids` (the masks that it leaves behind are not cut).
        by_labels: the loss mask is the response already (completion-only or assistant-only loss).
    """

    tokenizer: Any
    chat_template: str | None
    max_length: int | None
    keep_end: bool
    by_labels: bool

    def __call__(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        ids, labels = example["input_ids"], example["labels"]
        if example.get("completion_mask") is not None:
            mask = _cut(example["completion_mask"], self.max_length, self.keep_end)
        elif self.by_labels or not example.get("messages"):
            mask = [int(label != -100) for label in labels]
        else:
            kwargs = {"chat_template": self.chat_template, **(example.get("chat_template_kwargs") or {})}
            try:
                whole, found = assistant_tokens(self.tokenizer, example["messages"], **kwargs)
            except Exception:
                whole, found = ids, None  # what the trainer rendered otherwise is not known
            mask = _cut(found or [], self.max_length, self.keep_end)
            if _cut(whole, self.max_length, self.keep_end) != list(ids):
                mask = []
        return {RESPONSE: mask if len(mask) == len(ids) else [-1] * len(ids)}


def has_prompt(example: Any) -> bool:
    """Whether an example has a part that is no response: a prompt or a conversation."""
    return isinstance(example, Mapping) and (
        "completion_mask" in example or "prompt" in example or "messages" in example
    )


def attach_marks(batch: MutableMapping[str, Any], examples: list[Mapping[str, Any]]) -> None:
    """Lay row (rows,) and response mask (rows, length) behind a batch's own keys (see `carrying.CarryingCollator`).

    Packed batches, which have another number of rows than examples, get none.
    """
    ids = batch["input_ids"]
    if ids.dim() != 2 or len(ids) != len(examples):
        return
    if all(ROW in e for e in examples):
        batch[ROW] = torch.tensor([e[ROW] for e in examples], dtype=torch.int64)
    attention = batch.get("attention_mask")
    if not torch.is_tensor(attention) or attention.shape != ids.shape or not all(RESPONSE in e for e in examples):
        return
    response = torch.full(ids.shape, -1, dtype=torch.int64)
    for i, example in enumerate(examples):
        where = attention[i].bool()
        if int(where.sum()) == len(example[RESPONSE]):  # whichever side is padded
            response[i, where] = torch.tensor(example[RESPONSE], dtype=torch.int64)
    batch[RESPONSE] = response
