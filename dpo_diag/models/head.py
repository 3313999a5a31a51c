"""A model's output embedding: the hidden states that it sees, and the logits of chosen positions, tile by tile.

On a CPU the logits of all positions and the whole vocabulary are more than its caches hold, and every pass over them
costs as much as making them. So they are made in tiles that stay in the cache and are forgotten when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from dpo_diag.errors import DiagError
from dpo_diag.models.batches import device_of, forward_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGITS = 64 * 2**20
"""Logits held at once where there are no tiles (elements): 256 MB in float32."""
TILE_POSITIONS, TILE_TOKENS = 256, 1024
"""A tile on a CPU: 1 MB in float32, half of a usual second-level cache."""


@dataclass(frozen=True)
class Seen:
    """What one forward gave at the positions asked for.

    Attributes:
        hidden: the states that the head sees there, (positions, width).
        logits: the model's own logits there, (positions, vocabulary); None where `Head.tiles(hidden)` gives them.
    """

    hidden: torch.Tensor
    logits: torch.Tensor | None


class Head:
    """Logits of one model at chosen positions; use it inside `borrowed(model)`.

    The logits are the output embedding's, scaled and soft-capped as the config says. Every forward proves that on one
    position against the model's own; where it fails, the model's own logits are used at all positions.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, device_of(model)
        self.module: Any = model.get_output_embeddings()
        if self.module is None:
            raise DiagError("the model has no output embedding", got=type(model).__name__, expected="a causal LM")
        self.vocabulary = int(self.module.weight.shape[0])
        self.scale, self.softcap = _scale_and_softcap(getattr(model, "config", None))
        # A shard is whole inside of the model's forward alone: only the logits made there can be had.
        self._is_shard = hasattr(self.module.weight, "device_mesh")
        # Anything but a plain layer in memory (an adapter on it, quantised or off-loaded weights) is called as it is.
        self.is_tiled = (
            type(self.module) is torch.nn.Linear
            and not hasattr(self.module, "_hf_hook")
            and self.module.weight.device.type == "cpu"
            and not self._is_shard
        )
        self._kwargs: dict[str, Any] = {"use_cache": False} if "use_cache" in forward_parameters(model) else {}
        self._own_logits = self._is_shard

    @property
    def positions(self) -> int:
        """Positions that `tiles` takes at a time."""
        return TILE_POSITIONS if self.is_tiled else max(1, MAX_LOGITS // self.vocabulary)

    def see(self, where: torch.Tensor, **inputs: Any) -> Seen:
        """One forward.

        Args:
            where: positions wanted, int64 (positions,), in the batch's sequences one after the other; at least one.
            inputs: the model's arguments.

        Raises:
            DiagError: the model does not use its output embedding.
        """
        kept: list[torch.Tensor] = []

        def take(states: torch.Tensor) -> torch.Tensor:
            kept.append(states.flatten(0, -2)[where])
            return kept[0][None] if self._own_logits else kept[0][None, :1]

        with self._takes(take):
            logits = self.model(**(self._kwargs | inputs)).logits[0]
        if not kept:
            raise DiagError("the model does not use its output embedding", got=type(self.model).__name__)
        if self._own_logits:
            return Seen(kept[0], logits)
        if not self._same_logits(self.logits(Seen(kept[0][:1], None)), logits):
            if "past_key_values" in inputs:  # which a second forward would write to again
                raise DiagError("the logits are not the output embedding's", got=type(self.model).__name__)
            self._own_logits = True
            return self.see(where, **inputs)
        return Seen(kept[0], None)

    def tiles(self, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """(first token, logits of it and the next ones in float32), over the vocabulary; a tile is the caller's to
        change, until the next one comes."""
        if not self.is_tiled:
            yield 0, self._shaped(self.module(hidden))
            return
        for first in range(0, self.vocabulary, TILE_TOKENS):
            yield first, self.columns(hidden, slice(first, first + TILE_TOKENS))

    def logits(self, seen: Seen) -> torch.Tensor:
        """Logits over the whole vocabulary in float32, (positions, vocabulary): for a few positions."""
        if seen.logits is not None:
            return seen.logits.float()
        return torch.cat([tile for _, tile in self.tiles(seen.hidden)], dim=1)

    def columns(self, hidden: torch.Tensor, tokens: slice | torch.Tensor) -> torch.Tensor:
        """Logits of some tokens in float32, (positions, tokens), of a head that comes in tiles."""
        bias = self.module.bias
        product = F.linear(hidden, self.module.weight[tokens], None if bias is None else bias[tokens])
        return self._shaped(product)

    def _shaped(self, logits: torch.Tensor) -> torch.Tensor:
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()

    @contextmanager
    def _takes(self, take: Any) -> Iterator[None]:
        handle = self.module.register_forward_pre_hook(lambda _, args: (take(args[0]), *args[1:]))
        try:
            yield
        finally:
            handle.remove()

    def _same_logits(self, ours: torch.Tensor, own: torch.Tensor) -> bool:
        if ours.shape != own.shape:
            return False
        # Another order of a sum moves a logit by a step of its type, of the size that its terms have.
        close = max(1e-5, torch.finfo(own.dtype).eps)
        largest = float(own.abs().nan_to_num(nan=0.0, posinf=0.0).max())
        return torch.allclose(ours, own.float(), rtol=close, atol=close * largest, equal_nan=True)


def _scale_and_softcap(config: Any) -> tuple[float, float | None]:
    """What the architectures of transformers do to the head's product, by their configs' names for it."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    softcap = getattr(config, "final_logit_softcapping", None)
    # Cohere; Falcon-H1. Granite divides by its factor, HyperCLOVA X multiplies with one of the same name.
    names = ("logit_scale", "output_multiplier", "lm_head_multiplier")
    factors = [float(v) for name in names if (v := getattr(config, name, None)) is not None]
    if not factors and (scaling := getattr(config, "logits_scaling", None)) is not None:
        factors = [float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)]
    return (factors[0] if factors else 1.0), None if softcap is None else float(softcap)
