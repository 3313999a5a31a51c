"""TRL's padded batch of pairs as one packed row (`models.packed`), and the way back to its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dpo_diag.models.packed.attention import forward_inputs
from dpo_diag.models.packed.rows import Row, Span, pack

KNOWN = ("input_ids", "attention_mask", "completion_mask", "ref_chosen_logps", "ref_rejected_logps")
"""What a batch of text pairs holds under TRL 1.16."""


@dataclass(frozen=True)
class PackedBatch:
    """One row that stands for a padded batch, (rows, length).

    Attributes:
        inputs: of the model's forward, inside `packed_attention`.
        read: (scored,) places in the row whose output predicts a token of a response, in the order in which the padded
            batch has them, row after row.
        targets: (scored,) those tokens.
        places: (tokens,) places in the row of all real tokens of the padded batch, row after row; None where some stand
            in no row, since nothing of their response is scored.
        longest: tokens of the longest sequence.
        shape: of the padded batch.
    """

    inputs: dict[str, Any]
    read: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor | None
    longest: int
    shape: tuple[int, int]


def packed_batch(batch: Mapping[str, Any]) -> PackedBatch | str:
    """The batch as one row; or why it cannot be one.

    Args:
        batch: as TRL's `_compute_loss` has it: chosen rows, then rejected rows, padded on the right.
    """
    if more := sorted(set(batch) - set(KNOWN)):
        return f"the batch holds {', '.join(more)}"
    device = batch["input_ids"].device
    ids, attention, completion = torch.stack([batch[k].long() for k in KNOWN[:3]]).cpu().numpy()
    n_rows, width = ids.shape
    lengths = attention.sum(1)
    starts = np.where(completion.any(1), completion.argmax(1), lengths)
    column = np.arange(width)
    real = column < lengths[:, None]
    if not np.array_equal(attention, real) or not np.array_equal(completion, real & (column >= starts[:, None])):
        return "a row of the batch is not a prompt, a response and padding behind them"
    spans = [
        Span(row[:start].tolist(), row[start:n].tolist()) for row, start, n in zip(ids, starts, lengths, strict=True)
    ]
    rows = pack(spans, max_tokens=int(lengths.sum()))
    if not rows:
        return "no response of the batch has a scored token"
    row = rows[0]
    order = np.argsort(row.spans, kind="stable")
    ends = np.cumsum(row.n_scored)[:-1]
    read, targets = (
        torch.from_numpy(np.concatenate([np.split(values, ends)[i] for i in order])).to(device)
        for values in (row.read, row.targets)
    )
    places = torch.from_numpy(_places(row, order)).to(device) if len(row.spans) == n_rows else None
    return PackedBatch(forward_inputs(row, device), read, targets, places, int(lengths.max()), (n_rows, width))


def _places(row: Row, order: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Places of every span's tokens, its prompt's included, span after span."""
    of_span = []
    for segment in row.segments:
        prompt = np.arange(segment.start, segment.start + segment.prompt)
        ends = segment.start + segment.prompt + np.cumsum(segment.responses)
        of_span += [
            np.concatenate([prompt, np.arange(end - n, end)]) for end, n in zip(ends, segment.responses, strict=True)
        ]
    return np.concatenate([of_span[i] for i in order])
