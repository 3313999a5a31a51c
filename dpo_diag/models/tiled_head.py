"""The LM head in tiles that stay in the cache: log-probs of given tokens and what else their distributions say.

On a CPU a head is bound by its passes over the logits rather than by its products. A tile of `TILE` logits is made,
read and forgotten while it lies in the cache; the backward pass makes it again. Sums are float32, relative to the
running maximum of each position, so that no term is larger than 1. The (positions, vocabulary) logits never exist.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch

TILE = 2**17
"""Logits of a tile: half a megabyte in float32, so that two of them fit the second-level cache."""
COLUMNS = 1024
"""Tokens of the vocabulary in a tile."""
OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "greedy_logp", "is_top5")
"""What can be asked for beside the log-probs."""
_TIE = 1e-5
"""Top-5: logits within this share of the target's are not above it; its own, computed twice, must not be."""


class HeadOutputs(NamedTuple):
    """Per position, (positions,) each, float32 or bool; None where it was not asked for. Only `log_probs` and `entropy`
    have a gradient.

    Attributes:
        log_probs: of the target, nats.
        entropy: of the distribution, nats.
        log_sum_sq_probs: log of the sum of the squared probabilities.
        mean_logits: mean logit over the vocabulary, scaled and capped as the model's logits are.
        is_top1: whether the target is the likeliest token; of equal ones the first is.
        greedy_logp: log-prob of the likeliest token.
        is_top5: whether fewer than five tokens are likelier than the target.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor | None
    log_sum_sq_probs: torch.Tensor | None
    mean_logits: torch.Tensor | None
    is_top1: torch.Tensor | None
    greedy_logp: torch.Tensor | None
    is_top5: torch.Tensor | None


def tiled_head(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *,
    outputs: Collection[str] = (), temperature: float = 1.0, scale: float = 1.0, softcap: float | None = None,
) -> HeadOutputs:  # fmt: skip
    """Log-probs of `targets` under softmax(cap(scale · (hidden · weightᵀ + bias)) / temperature), and `outputs` of it.

    Products are formed in autocast's type where it is on, else in `hidden`'s, and accumulated in float32.

    Args:
        hidden: (positions, width).
        weight, bias: (vocabulary, width) and (vocabulary,).
        targets: int64 (positions,).
        outputs: some of `OUTPUTS`.
        softcap: logits are softcap · tanh(logits / softcap).
    """
    values = _TiledHead.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, frozenset(outputs), temperature, scale, softcap
    )
    return HeadOutputs(*values)


class _Tiles:
    """The tiles of one product, column after column: their logits in float32, in a buffer that the next one takes."""

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, factor: float,
        softcap: float | None, inverse_temperature: float,
    ) -> None:  # fmt: skip
        self.hidden, self.weight, self.bias, self.dtype = hidden.to(dtype), weight, bias, dtype
        self.factor, self.softcap, self.inverse_temperature = factor, softcap, inverse_temperature
        n, vocabulary = len(hidden), len(weight)
        self.columns = min(vocabulary, COLUMNS)
        self.rows = max(1, min(n, TILE // self.columns))
        self._product = hidden.new_empty((self.rows, self.columns), dtype=dtype)
        self._logits = (
            self._product if dtype == torch.float32 else hidden.new_empty(self._product.shape, dtype=torch.float32)
        )
        self.spare = torch.empty_like(self._logits)

    def __iter__(self) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(rows, columns, the tile's logits, a buffer of its shape, the weight's rows) of each tile. With a cap the
        buffer holds its tanh."""
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
                    b.view(-1)[: n * width].view(n, width) for b in (self._product, self._logits, self.spare)
                )
                torch.mm(self.hidden[rows], weight.t(), out=product)
                if bias is not None:
                    product.add_(bias)
                if logits is not product:
                    logits.copy_(product)
                if self.factor != 1.0:
                    logits.mul_(self.factor)
                if self.softcap is not None:
                    torch.div(logits, self.softcap, out=spare).tanh_()
                    torch.mul(spare, self.softcap * self.inverse_temperature, out=logits)
                yield rows, columns, logits, spare, weight


class _TiledHead(torch.autograd.Function):
    """See `tiled_head`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
        outputs: frozenset[str], temperature: float, scale: float, softcap: float | None,
    ) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        device = hidden.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else hidden.dtype
        ctx.dtype = dtype if dtype.itemsize <= 4 else torch.float32
        ctx.scaling = (scale if softcap is not None else scale / temperature, softcap, 1 / temperature)
        n, vocabulary = len(hidden), len(weight)

        def zeros(name: str, value: float = 0.0) -> torch.Tensor | None:
            return hidden.new_full((n,), value, dtype=torch.float32) if name in outputs else None

        largest = hidden.new_full((n,), -torch.inf, dtype=torch.float32)
        total, target_logit = torch.zeros_like(largest), torch.zeros_like(largest)
        # Σ e (z - max), Σ e², Σ z, the largest logit of an earlier token, tokens above the target.
        weighted, squares, logit_sum = zeros("entropy"), zeros("log_sum_sq_probs"), zeros("mean_logits")
        earlier, above = zeros("is_top1", -torch.inf), zeros("is_top5")
        bar = None
        if above is not None:
            bar = _target_logits(hidden.to(ctx.dtype), weight, bias, targets, ctx.scaling)
            bar += _TIE * bar.abs().clamp(min=1)
        tiles = _Tiles(hidden, weight, bias, ctx.dtype, *ctx.scaling)
        for rows, columns, z, spare, _ in tiles:
            before = largest[rows]
            local = targets[rows] - columns.start
            inside = ((local >= 0) & (local < z.shape[1])).nonzero().squeeze(1)
            if len(inside):
                at = local[inside]
                target_logit[rows].index_copy_(0, inside, z[inside, at])
                if earlier is not None:
                    first = torch.arange(z.shape[1], device=device) < at.unsqueeze(1)
                    own = z[inside].masked_fill_(~first, -torch.inf).amax(1)
                    earlier[rows].index_copy_(0, inside, torch.maximum(before[inside], own))
            if logit_sum is not None:
                logit_sum[rows] += z.sum(1)
            if above is not None:
                assert bar is not None
                above[rows] += torch.gt(z, bar[rows].unsqueeze(1), out=spare).sum(1)
            now = torch.maximum(before, z.amax(1))
            z.sub_(now.unsqueeze(1))
            e = torch.exp(z, out=spare)
            shrink = torch.exp(before - now)
            if weighted is not None:
                # The sum so far, relative to the new maximum; nothing where there was none.
                shift = torch.where(before == -torch.inf, 0.0, before - now)
                weighted[rows] = shrink * (weighted[rows] + shift * total[rows]) + torch.mul(e, z, out=z).sum(1)
            total[rows] = shrink * total[rows] + e.sum(1)
            if squares is not None:
                squares[rows] = shrink * shrink * squares[rows] + torch.mul(e, e, out=z).sum(1)
            largest[rows] = now
        log_total = total.log()
        log_z = largest + log_total
        entropy = None if weighted is None else log_total - weighted / total
        ctx.save_for_backward(hidden, weight, bias, targets, log_z, entropy)
        values = (
            target_logit - log_z,
            entropy,
            None if squares is None else squares.log() - 2 * log_total,
            None if logit_sum is None else logit_sum / vocabulary,
            None if earlier is None else (target_logit >= largest) & (target_logit > earlier),
            -log_total if "greedy_logp" in outputs else None,
            None if above is None else above < 5,
        )
        ctx.mark_non_differentiable(*(v for v in values[2:] if v is not None))
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        of_logp, of_entropy = (None if g is None else g.float().contiguous() for g in gradients[:2])
        of_logp = torch.zeros_like(log_z) if of_logp is None else of_logp
        used = of_logp != 0 if of_entropy is None else (of_logp != 0) | (of_entropy != 0)
        everywhere = bool(used.all())
        if not everywhere:  # a position outside the loss costs nothing here
            hidden, targets, log_z, of_logp = hidden[used], targets[used], log_z[used], of_logp[used]
            if of_entropy is not None:
                entropy, of_entropy = entropy[used], of_entropy[used]
        factor, softcap, inverse_temperature = ctx.scaling
        slope = factor if softcap is None else factor * inverse_temperature
        to_hidden, to_weight, to_bias = (
            torch.zeros(of.shape, dtype=torch.float32, device=of.device) if needed else None
            for of, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        tiles = _Tiles(hidden, weight, bias, ctx.dtype, *ctx.scaling)
        whole = tiles.hidden.float()
        for rows, columns, z, spare, part in tiles:
            tanh = spare.clone() if softcap is not None else None
            z.sub_(log_z[rows].unsqueeze(1))
            p = torch.exp(z, out=spare)
            # d log p(target) / d z = [target] - p; d entropy / d z = -p (log p + entropy)
            grad = of_logp[rows]
            if of_entropy is not None:
                weights = z.add_(entropy[rows].unsqueeze(1)).mul_(of_entropy[rows].unsqueeze(1))
                p.mul_(weights.add_(grad.unsqueeze(1)).neg_())
            else:
                p.mul_(-grad.unsqueeze(1))
            local = targets[rows] - columns.start
            inside = ((local >= 0) & (local < p.shape[1])).nonzero().squeeze(1)
            p[inside, local[inside]] += grad[inside]
            if tanh is not None:
                p.mul_(tanh.square_().neg_().add_(1))
            if slope != 1.0:
                p.mul_(slope)
            if ctx.dtype != torch.float32:
                p = p.to(ctx.dtype).float()  # as a product in that type would see it
            if to_hidden is not None:
                to_hidden[rows].addmm_(p, part.float())
            if to_weight is not None:
                to_weight[columns].addmm_(p.t(), whole[rows])
            if to_bias is not None:
                to_bias[columns] += p.sum(0)
        if to_hidden is not None and not everywhere:
            to_hidden = to_hidden.new_zeros(len(used), to_hidden.shape[1]).index_copy(
                0, used.nonzero()[:, 0], to_hidden
            )
        return (
            None if to_hidden is None else to_hidden.to(hidden.dtype),
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None, None, None, None, None,
        )  # fmt: skip


def _target_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
    scaling: tuple[float, float | None, float],
) -> torch.Tensor:  # fmt: skip
    """(positions,) the targets' logits, but for rounding those of the tiles."""
    factor, softcap, inverse_temperature = scaling
    logits = (hidden.float() * weight[targets].float()).sum(1)
    if bias is not None:
        logits += bias[targets].float()
    logits *= factor
    return logits if softcap is None else torch.tanh(logits / softcap) * (softcap * inverse_temperature)
