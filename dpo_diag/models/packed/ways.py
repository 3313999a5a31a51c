"""Three ways to the hidden states that predict the tokens of spans: packed, cached, plain. They differ by rounding.

packed  the prompt once, its responses behind it in one row without padding (`rows`, `attention`)
cached  the prompt once into the model's own cache, then its responses as a padded batch
plain   every sequence whole, in padded batches: what every model can do
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from dpo_diag.models.batches import by_length, empty_cache, padded
from dpo_diag.models.head import Head, Seen
from dpo_diag.models.packed.attention import forward_inputs, packed_attention
from dpo_diag.models.packed.rows import ROW_TOKENS, IntArray, Span, pack, shared_prompts

Name = Literal["packed", "cached", "plain"]


@dataclass(frozen=True)
class Way:
    """How spans are brought through a model.

    Attributes:
        name: packed, cached or plain.
        batch_size: sequences in one forward (cached and plain).
        row_tokens: tokens in one row (packed).
        pad_id: what fills shorter sequences; masked, so it changes nothing.
    """

    name: Name = "plain"
    batch_size: int = 16
    row_tokens: int = ROW_TOKENS
    pad_id: int = 0

    def halved(self) -> Way | None:
        """With half as much in one forward; None where that is one sequence already."""
        if self.name != "packed" and self.batch_size < 2:
            return None
        return replace(self, batch_size=max(1, self.batch_size // 2), row_tokens=max(1, self.row_tokens // 2))

    def read(self, head: Head, spans: Sequence[Span]) -> Iterator[Read]:
        """What the head sees where it predicts the spans' tokens, each span once, in the order that suits the way;
        spans of which nothing is scored do not occur."""
        reads = {"packed": _packed, "cached": _cached, "plain": _plain}
        return reads[self.name](head, spans, self)


@dataclass(frozen=True)
class Read:
    """What one forward gives: of some spans, span after span.

    Attributes:
        spans: their numbers.
        n_scored: scored tokens of each.
        targets: those tokens, int64 (scored,).
        seen: what the head saw where it predicts them.
    """

    spans: tuple[int, ...]
    n_scored: IntArray
    targets: torch.Tensor
    seen: Seen


def _packed(head: Head, spans: Sequence[Span], way: Way) -> Iterator[Read]:
    for row in pack(spans, way.row_tokens):
        where, targets = (torch.from_numpy(a).to(head.device) for a in (row.read, row.targets))
        with packed_attention(head.model):
            seen = head.see(where, **forward_inputs(row, head.device))
        yield Read(row.spans, row.n_scored, targets, seen)


def _plain(head: Head, spans: Sequence[Span], way: Way) -> Iterator[Read]:
    scored = [i for i, span in enumerate(spans) if span.n_scored]
    for batch in by_length([len(spans[i]) for i in scored], way.batch_size):
        own = [scored[i] for i in batch]
        ids, mask = padded([[*spans[i].prompt, *spans[i].response] for i in own], way.pad_id, head.device)
        # Each token is predicted from the position before it.
        ends = [len(spans[i]) - 1 + row * ids.shape[1] for row, i in enumerate(own)]
        where = torch.cat([torch.arange(end - spans[i].n_scored, end) for end, i in zip(ends, own, strict=True)])
        where = where.to(head.device)
        seen = head.see(where, input_ids=ids, attention_mask=mask)
        yield Read(tuple(own), np.array([spans[i].n_scored for i in own]), ids.flatten()[where + 1], seen)


def _cached(head: Head, spans: Sequence[Span], way: Way) -> Iterator[Read]:
    bare = [i for i, span in enumerate(spans) if not span.prompt]
    for read in _plain(head, [spans[i] for i in bare], way):
        yield Read(tuple(bare[i] for i in read.spans), read.n_scored, read.targets, read.seen)
    for group in shared_prompts(spans, max_tokens=sum(map(len, spans))):
        prompt = list(spans[group[0]].prompt)
        for at in range(0, len(group) if prompt else 0, way.batch_size):
            own = group[at : at + way.batch_size]
            responses = [list(spans[i].response) for i in own]
            cache = empty_cache(head.model.config)
            last = torch.tensor([len(prompt) - 1], device=head.device)
            first = head.see(
                last, input_ids=torch.tensor([prompt], device=head.device), past_key_values=cache, use_cache=True
            )
            cache.batch_repeat_interleave(len(own))
            ids, mask = padded(responses, way.pad_id, head.device)
            seen = head.see(
                torch.arange(ids.numel(), device=head.device),
                input_ids=ids,
                attention_mask=torch.cat([mask.new_ones(len(own), len(prompt)), mask], dim=1),
                position_ids=(len(prompt) + torch.arange(ids.shape[1], device=head.device)).expand(ids.shape),
                past_key_values=cache,
                use_cache=True,
            )
            n_scored = np.array([len(response) for response in responses])
            yield Read(tuple(own), n_scored, ids[mask.bool()], _joined(first, seen, n_scored, ids.shape[1]))


def _joined(first: Seen, rest: Seen, n_scored: IntArray, width: int) -> Seen:
    """Of each response what predicts its tokens: the prompt's last place, and all of its own but the last; `rest`
    holds `width` places of each."""

    def join(one: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        pieces = [(one, others[row * width : row * width + n - 1]) for row, n in enumerate(n_scored.tolist())]
        return torch.cat([part for piece in pieces for part in piece])

    both = None if first.logits is None or rest.logits is None else join(first.logits, rest.logits)
    return Seen(join(first.hidden, rest.hidden), both)
