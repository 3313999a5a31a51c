"""The LM head in tiles (`models.head_tiles`): log-probs of given tokens and what else their distributions say, with a
gradient. The backward pass makes each tile again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch

from dpo_diag.models import head_tiles
from dpo_diag.models.head_tiles import Shape, Sums, Tiles

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
        hidden, weight, bias, targets, frozenset(outputs), Shape(scale, softcap, temperature)
    )
    return HeadOutputs(*values)


def product_type(hidden: torch.Tensor) -> torch.dtype:
    """In which the product of hidden states with an output embedding is formed: autocast's where it is on, else the
    states' own; float32 for a wider one."""
    autocast = torch.is_autocast_enabled(hidden.device.type)
    dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype
    return dtype if dtype.itemsize <= 4 else torch.float32


class _TiledHead(torch.autograd.Function):
    """See `tiled_head`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
        outputs: frozenset[str], shape: Shape,
    ) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
        ctx.set_materialize_grads(False)
        device = hidden.device
        ctx.dtype = product_type(hidden)
        ctx.shape = shape
        n, vocabulary = len(hidden), len(weight)

        def zeros(name: str, value: float = 0.0) -> torch.Tensor | None:
            return hidden.new_full((n,), value, dtype=torch.float32) if name in outputs else None

        sums = Sums(n, device, entropy="entropy" in outputs, squares="log_sum_sq_probs" in outputs)
        target_logit = hidden.new_zeros(n, dtype=torch.float32)
        # Σ z, the largest logit of an earlier token, tokens above the target.
        logit_sum, earlier, above = zeros("mean_logits"), zeros("is_top1", -torch.inf), zeros("is_top5")
        bar = None
        if above is not None:
            bar = _target_logits(hidden, weight, bias, targets, shape, ctx.dtype)
            bar += _TIE * bar.abs().clamp(min=1)
        for tile in Tiles(hidden, weight, bias, ctx.dtype, shape, head_tiles.TILE):
            rows, z = tile.rows, tile.logits
            inside, at = tile.of(targets)
            if len(inside):
                target_logit[rows].index_copy_(0, inside, z[inside, at])
                if earlier is not None:
                    first = torch.arange(z.shape[1], device=device) < at.unsqueeze(1)
                    own = z[inside].masked_fill_(~first, -torch.inf).amax(1)
                    earlier[rows].index_copy_(0, inside, torch.maximum(sums.largest[rows][inside], own))
            if logit_sum is not None:
                logit_sum[rows] += z.sum(1)
            if above is not None:
                assert bar is not None
                above[rows] += torch.gt(z, bar[rows].unsqueeze(1), out=tile.spare).sum(1)
            sums.add(tile)
        log_z = sums.log_z
        entropy = sums.entropy.float() if "entropy" in outputs else None
        ctx.save_for_backward(hidden, weight, bias, targets, log_z.float(), entropy)
        values = (
            (target_logit - log_z).float(),
            entropy,
            sums.log_sum_sq_probs.float() if "log_sum_sq_probs" in outputs else None,
            None if logit_sum is None else logit_sum / vocabulary,
            None if earlier is None else (target_logit >= sums.largest) & (target_logit > earlier),
            -sums.log_total.float() if "greedy_logp" in outputs else None,
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
        slope = ctx.shape.factor / ctx.shape.temperature
        to_hidden, to_weight, to_bias = (
            torch.zeros(of.shape, dtype=torch.float32, device=of.device) if needed else None
            for of, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        )
        tiles = Tiles(hidden, weight, bias, ctx.dtype, ctx.shape, head_tiles.TILE)
        whole = tiles.hidden.float()
        for tile in tiles:
            rows, columns, z = tile.rows, tile.columns, tile.logits
            tanh = tile.spare.clone() if ctx.shape.softcap is not None else None
            z.sub_(log_z[rows].unsqueeze(1))
            p = torch.exp(z, out=tile.spare)
            # d log p(target) / d z = [target] - p; d entropy / d z = -p (log p + entropy)
            grad = of_logp[rows]
            if of_entropy is not None:
                weights = z.add_(entropy[rows].unsqueeze(1)).mul_(of_entropy[rows].unsqueeze(1))
                p.mul_(weights.add_(grad.unsqueeze(1)).neg_())
            else:
                p.mul_(-grad.unsqueeze(1))
            inside, at = tile.of(targets)
            p[inside, at] += grad[inside]
            if tanh is not None:
                p.mul_(tanh.square_().neg_().add_(1))
            if slope != 1.0:
                p.mul_(slope)
            if ctx.dtype != torch.float32:
                p = p.to(ctx.dtype).float()  # as a product in that type would see it
            if to_hidden is not None:
                assert tile.weight is not None
                to_hidden[rows].addmm_(p, tile.weight.float())
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
            None, None, None,
        )  # fmt: skip


def _target_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, shape: Shape,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """(positions,) the targets' logits, but for the order of a sum those of the tiles: rounded where they are."""
    product = (hidden.to(dtype).float() * weight[targets].to(dtype).float()).sum(1).to(dtype)
    return shape.apply((product if bias is None else product + bias[targets].to(dtype)).float())
