"""The attention of a packed row: every response sees its own prompt and itself, and nothing else.

Registered with transformers' AttentionInterface, which hands over what the architecture asks for: scaling, sliding
window (counted in positions, not in places of the row), soft-capped scores, sinks, grouped heads, dropout. transformers
builds no mask for an implementation that it does not know, so none of (row x row) is ever made. The layout travels as
an argument of the model's forward, which the architectures hand on to the attention: so it is there in a recomputation
under gradient checkpointing, on autograd's threads, and for two models at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

from dpo_diag.errors import DiagError
from dpo_diag.models.packed.rows import Row, Segment

IMPLEMENTATION = "dpo_diag_packed"


class Layout:
    """A row's segments for one forward, and the masks that its layers share."""

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        self._masks: dict[tuple[Any, ...], torch.Tensor] = {}

    def mask(self, before: int, n: int, window: int, like: torch.Tensor) -> torch.Tensor:
        """(n, before + n), to be added to scores: n tokens behind `before` others see those and themselves up to their
        own place, the last `window` of them if that is not 0."""
        key = (before, n, window, like.dtype, like.device)
        if key not in self._masks:
            query = torch.arange(before, before + n, device=like.device)[:, None]
            seen = torch.arange(before + n, device=like.device)[None]
            hidden = seen > query
            if window:
                hidden |= seen <= query - window
            zeros = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self._masks[key] = zeros.masked_fill_(hidden, -torch.inf)
        return self._masks[key]


def forward_inputs(row: Row, device: torch.device) -> dict[str, Any]:
    """What the model's forward takes for a row, inside `packed_attention(model)`."""
    return {
        "input_ids": torch.from_numpy(row.ids)[None].to(device),
        "position_ids": torch.from_numpy(row.positions)[None].to(device),
        "packed": Layout(row.segments),
    }


@contextmanager
def packed_attention(model: torch.nn.Module) -> Iterator[None]:
    """Models in here take packed rows, and only those; the attention implementation is as before on leaving.

    A backward that recomputes the forward (gradient checkpointing) belongs inside too.

    Raises:
        DiagError: an architecture that does not ask transformers' AttentionInterface for its attention.
    """
    parts = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    for part in parts:
        if not part._can_set_attn_implementation():
            raise DiagError("the architecture has an attention of its own", got=type(part).__name__)
    configs = {id(c): c for part in parts for c in (part.config, part.config.get_text_config())}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation_internal = IMPLEMENTATION
        yield
    finally:
        for config, own in before:
            config._attn_implementation_internal = own


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | Literal["of the module"] | None = "of the module",
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    packed: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (1, heads, tokens, width), key and value (1, key heads, tokens, width);
    returns (1, tokens, heads, width of the values)."""
    if packed is None:
        raise DiagError("the architecture does not hand the layout on to its attention", got=type(module).__name__)
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise DiagError("a packed row is one sequence without a cache", got=tuple(query.shape))
    if not module.training:
        dropout = 0.0
    if sliding_window == "of the module":  # Qwen2-MoE hands its window on in the mask alone, which nobody builds here
        sliding_window = getattr(module, "sliding_window", None)
    outputs = []
    for segment in packed.segments:
        prompt = slice(segment.start, segment.start + segment.prompt)
        at = prompt.stop
        for i, n in enumerate(segment.responses):
            own = slice(at, at + n)
            at = own.stop
            if i == 0:
                # The prompt and its first response are one sequence.
                own = slice(prompt.start, own.stop)
                before, keys, values = 0, key[:, :, own], value[:, :, own]
            elif n == 0:
                continue
            else:
                before = segment.prompt
                keys = torch.cat([key[:, :, prompt], key[:, :, own]], dim=2)
                values = torch.cat([value[:, :, prompt], value[:, :, own]], dim=2)
            window = sliding_window if sliding_window and keys.shape[2] > sliding_window else 0
            outputs.append(
                _one(query[:, :, own], keys, values, packed, before, window, scaling, dropout, softcap, s_aux)
            )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, before: int, window: int,
    scaling: float | None, dropout: float, softcap: float | None, sinks: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Attention of n queries behind `before` tokens: (1, heads, n, width of the values)."""
    n, groups = query.shape[2], query.shape[1] // key.shape[1]
    if softcap is None and sinks is None:
        causal = before == 0 and not window
        mask = None if causal else layout.mask(before, n, window, query)
        # On an accelerator a mask and grouped heads together would be left to the kernel that holds all scores.
        grouped = groups > 1 and (causal or query.device.type == "cpu")
        if groups > 1 and not grouped:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + layout.mask(before, n, window, query)
    if sinks is not None:
        # A sink is one more score of each head that takes its share of the weight and adds nothing (gpt-oss).
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(1, -1, n, 1).to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return F.dropout(weights, dropout) @ value


AttentionInterface.register(IMPLEMENTATION, _attend)
