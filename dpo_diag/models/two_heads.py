"""Two models' logits at the same positions in tiles (`models.head_tiles`), and log-probs under logits on the line
through both: neither model's logits ever exist as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dpo_diag.errors import DiagError
from dpo_diag.models import head_tiles
from dpo_diag.models.head_tiles import Shape, Sums, Tile, Tiles
from dpo_diag.models.tiled_head import product_type

_TILE_ELSEWHERE = 2**23
"""Logits of a tile where no cache has to hold it: 32 MB in float32, three of them at once."""


@dataclass(frozen=True)
class HeadInput:
    """What an output layer is given: hidden (positions, width), weight (vocabulary, width), bias (vocabulary,)."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    shape: Shape


def tile_pairs(ours: HeadInput, theirs: HeadInput) -> Iterator[tuple[Tile, Tile]]:
    """The same tile of both, one after the other, without a gradient; each is the caller's to change.

    Raises:
        DiagError: vocabularies of two sizes.
    """
    if len(ours.weight) != len(theirs.weight):
        raise DiagError(
            "the reference has another vocabulary than the policy", got=f"{len(theirs.weight)} embeddings",
            expected=len(ours.weight),
        )  # fmt: skip
    size = head_tiles.TILE if ours.hidden.device.type == "cpu" else _TILE_ELSEWHERE
    both = [
        Tiles(of.hidden.detach(), of.weight.detach(), None if of.bias is None else of.bias.detach(),
              product_type(of.hidden), of.shape, size)
        for of in (ours, theirs)
    ]  # fmt: skip
    return zip(*both, strict=True)


@torch.no_grad()
def log_probs_between(
    ours: HeadInput, theirs: HeadInput, targets: torch.Tensor, shares: Sequence[float]
) -> torch.Tensor:
    """Log-probs of `targets` under the logits z + share · (z - z') for each share, z ours and z' theirs; nats, float64
    (float32 on MPS, which has no other), (shares, positions), without a gradient.

    Share 0 is our own distribution, -1 theirs. Where both are given the same, all shares give the same bit for bit.

    Args:
        targets: int64 (positions,).

    Raises:
        DiagError: vocabularies of two sizes.
    """
    n, device = len(targets), ours.hidden.device
    sums = [Sums(n, device, entropy=False) for _ in shares]
    own = torch.zeros((len(shares), n), dtype=torch.float32, device=device)
    for mine, other in tile_pairs(ours, theirs):
        apart = torch.sub(mine.logits, other.logits, out=other.logits)
        apart.nan_to_num_(nan=0.0)  # a logit of -inf in both stays one
        inside, at = mine.of(targets)
        for share, of_share, target in zip(shares, sums, own, strict=True):
            logits = torch.add(mine.logits, apart, alpha=share)
            target[mine.rows].index_copy_(0, inside, logits[inside, at])
            of_share.add(Tile(mine.rows, mine.columns, logits, mine.spare))
    return torch.stack([target - of_share.log_z for target, of_share in zip(own, sums, strict=True)])
