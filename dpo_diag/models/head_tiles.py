"""The product of hidden states with an output embedding in tiles that stay in the cache, and the sums over the
vocabulary that are formed of them.

On a CPU a head is bound by its passes over the logits rather than by its products. A tile of `TILE` logits is made,
read and forgotten while it lies in the cache, so that the (positions, vocabulary) logits never exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

TILE = 2**17
"""Logits of a tile: half a megabyte in float32, so that two of them fit the second-level cache. Without a gradient,
where nothing else is read, tiles of twice the size take 0.8 of the time."""
COLUMNS = 1024
"""Tokens of the vocabulary in a tile."""


@dataclass(frozen=True)
class Shape:
    """What becomes of a product: cap(factor · product) / temperature, with cap(x) = softcap · tanh(x / softcap).

    Attributes:
        in_own_type: in the product's type, as a model does it, and not in float32.
    """

    factor: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    in_own_type: bool = False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Shaped logits, new ones where anything is done to them."""
        if self.factor != 1.0:
            logits = logits * self.factor
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits if self.temperature == 1.0 else logits / self.temperature


@dataclass(frozen=True)
class Tile:
    """Logits of some positions and tokens in float32, (positions, tokens); the reader may change them.

    Attributes:
        rows, columns: which positions and tokens.
        spare: a buffer of the same shape. Of capped logits that are shaped in float32 it holds the tanh.
        weight: the tokens' rows of the embedding, in the product's type; None where the logits came whole.
    """

    rows: slice
    columns: slice
    logits: torch.Tensor
    spare: torch.Tensor
    weight: torch.Tensor | None = None

    def of(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows of this tile whose target is among its tokens, that token's column)."""
        local = targets[self.rows] - self.columns.start
        inside = ((local >= 0) & (local < self.logits.shape[1])).nonzero().squeeze(1)
        return inside, local[inside]


class Tiles:
    """The tiles of one product, column after column, in buffers that the next one takes.

    Args:
        hidden: (positions, width).
        weight, bias: (vocabulary, width) and (vocabulary,).
        dtype: in which products are formed.
        size: logits of a tile at most.
    """

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, shape: Shape,
        size: int,
    ) -> None:  # fmt: skip
        self.hidden, self.weight, self.bias, self.dtype, self.shape = hidden.to(dtype), weight, bias, dtype, shape
        n, vocabulary = len(hidden), len(weight)
        self.columns = min(vocabulary, COLUMNS)
        self.rows = max(1, min(n, size // self.columns))
        self._product = hidden.new_empty((self.rows, self.columns), dtype=dtype)
        self._logits = (
            self._product if dtype == torch.float32 else hidden.new_empty(self._product.shape, dtype=torch.float32)
        )
        self._spare = torch.empty_like(self._logits)

    def __iter__(self) -> Iterator[Tile]:
        for first in range(0, len(self.weight), self.columns):
            columns = slice(first, min(first + self.columns, len(self.weight)))
            weight = self.weight[columns].to(self.dtype)
            width = len(weight)
            bias = None if self.bias is None else self.bias[columns].to(self.dtype)
            for top in range(0, len(self.hidden), self.rows):
                rows = slice(top, min(top + self.rows, len(self.hidden)))
                n = rows.stop - top
                # A full buffer's corner has gaps between its rows: the narrower tile takes a stretch of its own.
                product, logits, spare = (
                    b.view(-1)[: n * width].view(n, width) for b in (self._product, self._logits, self._spare)
                )
                torch.mm(self.hidden[rows], weight.t(), out=product)
                if bias is not None:
                    product.add_(bias)
                self._shaped(product, logits, spare)
                yield Tile(rows, columns, logits, spare, weight)

    def _shaped(self, product: torch.Tensor, logits: torch.Tensor, spare: torch.Tensor) -> None:
        shape = self.shape
        if shape.in_own_type and logits is not product:
            logits.copy_(shape.apply(product))
            return
        if logits is not product:
            logits.copy_(product)
        # Without a cap factor and temperature are one number.
        factor = shape.factor / shape.temperature if shape.softcap is None else shape.factor
        if factor != 1.0:
            logits.mul_(factor)
        if shape.softcap is not None:
            torch.div(logits, shape.softcap, out=spare).tanh_()
            torch.mul(spare, shape.softcap / shape.temperature, out=logits)


class Sums:
    """Sums over the vocabulary, of one tile after the other, each position's relative to its largest logit m so far, so
    that no term is larger than 1: within a tile in float32, over tiles in float64 (float32 on MPS, which has none).

    With s = Σ exp(z - m) and x = Σ (z - m) exp(z - m) the log of the normaliser is m + log s, the entropy
    log s - x / s, and the largest log-prob -log s.

    Args:
        n: positions.
        entropy, squares: whether x, and Σ exp(2 (z - m)), are formed.
    """

    def __init__(self, n: int, device: torch.device, *, entropy: bool = True, squares: bool = False) -> None:
        kind = torch.float32 if device.type == "mps" else torch.float64
        self.largest = torch.full((n,), -torch.inf, dtype=torch.float32, device=device)
        self._total = torch.zeros(n, dtype=kind, device=device)
        self._weighted = torch.zeros_like(self._total) if entropy else None
        self._squares = torch.zeros_like(self._total) if squares else None

    def add(self, tile: Tile) -> None:
        """Take a tile's logits, which are overwritten, and its spare buffer."""
        rows, first = tile.rows, tile.columns.start == 0
        largest, total = self.largest[rows], self._total[rows]
        now = tile.logits.amax(1) if first else torch.maximum(largest, tile.logits.amax(1))
        d = tile.logits.sub_(now.unsqueeze(1))
        e = torch.exp(d, out=tile.spare)
        shift = (largest - now).to(total.dtype)
        kept = shift.exp()
        if self._weighted is not None:
            weighted = self._weighted[rows]
            if not first:
                weighted.add_(shift.mul_(total)).mul_(kept)
            terms = torch.mul(e, d, out=d)
            added = terms.sum(1)
            if added.isnan().any():  # a logit of -inf: exp(-inf) * -inf is no number, and such a token adds nothing
                added = terms.nan_to_num_(nan=0.0).sum(1)
            weighted.add_(added)
        total.mul_(kept).add_(e.sum(1))
        if self._squares is not None:
            self._squares[rows].mul_(kept.square_()).add_(torch.mul(e, e, out=d).sum(1))
        largest.copy_(now)

    @property
    def log_total(self) -> torch.Tensor:
        """(positions,) log s: how far the normaliser's log lies above the largest logit."""
        return self._total.log()

    @property
    def log_z(self) -> torch.Tensor:
        """(positions,) log of the normaliser."""
        return self.largest.to(self._total.dtype) + self.log_total

    @property
    def entropy(self) -> torch.Tensor:
        """(positions,) nats."""
        assert self._weighted is not None
        return self.log_total - self._weighted / self._total

    @property
    def log_sum_sq_probs(self) -> torch.Tensor:
        """(positions,) log of the sum of the squared probabilities."""
        assert self._squares is not None
        return self._squares.log() - 2 * self.log_total
