"""A model's output embedding: the hidden states that it sees, and the logits of chosen positions, tile by tile
(`models.head_tiles`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from dpo_diag.errors import DiagError
from dpo_diag.models import head_tiles
from dpo_diag.models.batches import device_of, forward_parameters
from dpo_diag.models.head_tiles import Shape, Tile, Tiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGITS = 64 * 2**20
"""Logits held at once where there are no tiles (elements): 256 MB in float32."""
_TOGETHER = 128
"""Positions whose tokens' logits are one product, of which the diagonal is read."""


@dataclass(frozen=True)
class Seen:
    """What one forward gave at the positions asked for.

    Attributes:
        hidden: the states that the head sees there, (positions, width).
        logits: the model's own logits there, (positions, vocabulary); None where the head gives them (`Head.tiles`).
    """

    hidden: torch.Tensor
    logits: torch.Tensor | None

    def part(self, rows: slice) -> Seen:
        """The same of some of the positions."""
        return Seen(self.hidden[rows], None if self.logits is None else self.logits[rows])


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
        self.shape = Shape(*_scale_and_softcap(getattr(model, "config", None)), in_own_type=True)
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

    def tiles(self, seen: Seen) -> Iterator[Tile]:
        """The logits there, over the whole vocabulary; a tile is the caller's to change, until the next one comes."""
        if self.is_tiled and seen.logits is None:
            hidden, module = seen.hidden, self.module
            yield from Tiles(hidden, module.weight, module.bias, hidden.dtype, self.shape, 2 * head_tiles.TILE)
            return
        step = max(1, MAX_LOGITS // self.vocabulary)
        for first in range(0, len(seen.hidden), step):
            rows = slice(first, min(first + step, len(seen.hidden)))
            logits = self.logits(seen.part(rows))
            if seen.logits is not None:
                logits = logits.clone()
            yield Tile(rows, slice(0, logits.shape[1]), logits, torch.empty_like(logits))

    def logits(self, seen: Seen) -> torch.Tensor:
        """Logits over the whole vocabulary in float32, (positions, vocabulary): for a few positions."""
        return (self.shape.apply(self.module(seen.hidden)) if seen.logits is None else seen.logits).float()

    def of_tokens(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Each position's logit of one token in float32, (positions,), of a head that comes in tiles: mostly the very
        number that its tile holds."""
        found = []
        for first in range(0, len(tokens), _TOGETHER):
            rows = slice(first, first + _TOGETHER)
            own = tokens[rows]
            bias = None if self.module.bias is None else self.module.bias[own]
            product = F.linear(hidden[rows], self.module.weight[own], bias).diagonal()
            found.append(self.shape.apply(product).float())
        return torch.cat(found)

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
