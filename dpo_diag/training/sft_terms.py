"""What a supervised loss may hold beside the negative log-likelihood: label smoothing and auxiliary terms, each a pure
function, and `HeadTap`, which reads what they need where TRL's fused head runs.

The head returns log p(target) and the entropy with a gradient, and the mean logit without one. Label smoothing needs
the mean over the vocabulary of log p with one, which is the mean logit less logsumexp z. Of a head without a cap the
mean logit is the hidden state times the mean of the head's rows, and logsumexp z = z(target) - log p(target): so no
logits are built. Price: two products of (tokens, width), and two dense gradients of the head where that trains. A
capped head (Gemma 2) is projected once more, in tiles, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import trl.trainer.utils as trl_utils
from torch.utils.checkpoint import checkpoint

from dpo_diag.errors import DiagError, did_you_mean
from dpo_diag.models.head_tiles import COLUMNS, Shape

AUXILIARY = ("confidence_penalty", "z_loss", "infonce")
"""Terms by name; each value is logged as aux/NAME, before its weight."""


class TargetLogits(NamedTuple):
    """The target's logit and the mean logit over the vocabulary, shaped as the model's are, float32 (positions,)."""

    target: torch.Tensor
    mean: torch.Tensor


def _in_float32(values: torch.Tensor) -> Any:
    """Inside, products are of the types that they are given: autocast would make them 16 bits."""
    return torch.autocast(values.device.type, enabled=False)


def target_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, shape: Shape
) -> TargetLogits:
    """Both with a gradient; see the module.

    Args:
        hidden: (positions, width).
        weight, bias: (vocabulary, width) and (vocabulary,).
        targets: int64 (positions,).
    """
    with _in_float32(hidden):
        return _target_logits(hidden.float(), weight, bias, targets, shape)


def _target_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, shape: Shape
) -> TargetLogits:
    product = (hidden * weight[targets].float()).sum(1)
    target = shape.apply(product if bias is None else product + bias[targets].float())
    if shape.softcap is None:
        product = hidden @ weight.mean(0, dtype=torch.float32)
        return TargetLogits(target, shape.apply(product if bias is None else product + bias.float().mean()))

    def tile(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        z = h @ w.float().t()
        return shape.apply(z if b is None else z + b.float()).sum(1)

    total = torch.zeros_like(target)
    for first in range(0, len(weight), COLUMNS):
        columns = slice(first, first + COLUMNS)
        part = None if bias is None else bias[columns]
        total = total + checkpoint(tile, hidden, weight[columns], part, use_reentrant=False)
    return TargetLogits(target, total / len(weight))


# ---- the terms, each a value per token or per row, before its weight ----


def smoothing_term(logits: TargetLogits) -> torch.Tensor:
    """(positions,) what epsilon times is added to -log p(target): z(target) - mean z.

    The smoothed loss has the target 1 - epsilon + epsilon / V and epsilon / V elsewhere (Szegedy et al.,
    arXiv 1512.00567): -(1 - eps) log p(t) - eps mean_v log p(v) = -log p(t) + eps (z(t) - mean z), as logsumexp z
    falls out.
    """
    return logits.target - logits.mean


def confidence_penalty(entropy: torch.Tensor) -> torch.Tensor:
    """(positions,) -H(p) (Pereyra et al., arXiv 1701.06548): a weight above 0 holds distributions broad, one below 0 is
    a penalty on the entropy."""
    return -entropy


def z_loss(logits: TargetLogits, log_probs: torch.Tensor) -> torch.Tensor:
    """(positions,) (logsumexp z)^2 (PaLM, arXiv 2204.02311, with the weight 1e-4): holds the normaliser near 1."""
    return (logits.target - log_probs).square()


def infonce(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> torch.Tensor:
    """(rows,) -log of the share of row i's own key among all rows' (van den Oord et al., arXiv 1807.03748), by the
    cosine over the temperature; 0 for one row, which has nothing to be told from.

    Args:
        queries, keys: (rows, width).
    """
    queries, keys = (torch.nn.functional.normalize(x.float(), dim=1) for x in (queries, keys))
    with _in_float32(queries):
        scores = queries @ keys.t() / temperature
    return torch.logsumexp(scores, 1) - scores.diagonal()


def smoothed_floor(label_smoothing: float, vocabulary: int) -> float:
    """The least that a smoothed loss can be, nats per token: the entropy of its target; 0 without smoothing.

    >>> smoothed_floor(0.0, 768), round(smoothed_floor(0.1, 2), 4)
    (0.0, 0.1985)
    """
    other = label_smoothing / vocabulary
    own = 1 - label_smoothing + other
    return -own * math.log(own) - (0.0 if other == 0 else (vocabulary - 1) * other * math.log(other))


# ---- read in the head, added to the loss ----


@dataclass
class SftTerms:
    """The terms of one trainer.

    Attributes:
        label_smoothing: epsilon; `by_trl`: TRL's own way computes it, from full logits of a second forward
            (`label_smoothing_factor`), so that nothing is added.
        weights: of `AUXILIARY`, those that are on.
        temperature: of InfoNCE; 0.05 is SimCSE's (arXiv 2104.08821).
    """

    label_smoothing: float = 0.0
    by_trl: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 0.05

    @classmethod
    def checked(
        cls, label_smoothing: float, auxiliary: Mapping[str, float] | None, temperature: float, arguments: Any
    ) -> SftTerms:
        """Of a trainer's keywords and its arguments.

        Raises:
            DiagError: a value that cannot be, an unknown term, smoothing twice or beside another loss than the NLL.
        """
        by_trl = float(getattr(arguments, "label_smoothing_factor", 0.0) or 0.0)
        weights = {name: float(weight) for name, weight in (auxiliary or {}).items() if weight}
        for name in weights:
            if name not in AUXILIARY:
                raise DiagError("unknown auxiliary loss", got=name, expected=f"one of {', '.join(AUXILIARY)}",
                                hint=did_you_mean(name, AUXILIARY))  # fmt: skip
        if not 0 <= label_smoothing < 1:
            raise DiagError("label smoothing cannot be", got=label_smoothing, expected="0 or more, below 1")
        if temperature <= 0:
            raise DiagError("InfoNCE's temperature cannot be", got=temperature, expected="more than 0")
        if label_smoothing and by_trl:
            raise DiagError("label smoothing is asked for twice", got=f"{label_smoothing} and TRL's {by_trl}",
                            hint="leave label_smoothing_factor out: it takes a second forward")  # fmt: skip
        if label_smoothing and getattr(arguments, "loss_type", "nll") != "nll":
            raise DiagError(
                "label smoothing is of the negative log-likelihood", got=arguments.loss_type, expected="nll"
            )
        on_nll = getattr(arguments, "loss_type", "nll") == "nll"
        return cls(label_smoothing or (by_trl if on_nll else 0.0), bool(by_trl), weights, temperature)

    def check_trainer(self, trainer: Any) -> None:
        """What only the trainer knows: where the terms would be wrong.

        Raises:
            DiagError: a loss of the caller's own, packed rows, a head that is sharded.
        """
        if not self.adds:
            return
        stage = getattr(trainer.args.deepspeed_plugin, "zero_stage", 0)
        if trainer.accelerator.parallelism_config is not None or stage == 3:
            raise DiagError("terms of an SFT loss need the whole head on every process", got="ZeRO-3 or a mesh",
                            expected="DDP, FSDP, or one process")  # fmt: skip
        if self.label_smoothing and trainer.compute_loss_func is not None:
            raise DiagError("label smoothing beside a compute_loss_func", hint="smooth in that function")
        prompt_learning = getattr(getattr(trainer.model, "active_peft_config", None), "is_prompt_learning", False)
        if "infonce" in self.weights and prompt_learning:
            raise DiagError("InfoNCE compares states of the prompt, which prompt learning moves", hint="use LoRA")
        if "infonce" in self.weights and (trainer.args.packing or trainer.padding_free):
            raise DiagError("InfoNCE compares rows, and packed rows hold several sequences", hint="leave packing off")

    @property
    def adds(self) -> bool:
        """Whether anything is added to TRL's loss."""
        return bool(self.weights) or (self.label_smoothing > 0 and not self.by_trl)

    @property
    def any(self) -> bool:
        """Whether anything must be read in the head."""
        return self.adds or self.label_smoothing > 0

    @property
    def needs_logits(self) -> bool:
        """Whether the target's logit and the mean logit are needed."""
        return self.label_smoothing > 0 or "z_loss" in self.weights

    def per_token(self, logits: TargetLogits | None, output: Any) -> dict[str, torch.Tensor]:
        """Name of each term over tokens -> its values, in the shape of `output.log_probs`, before weights."""
        found: dict[str, torch.Tensor] = {}
        if logits is not None and self.label_smoothing > 0:
            found["label_smoothing"] = smoothing_term(logits)
        if "confidence_penalty" in self.weights:
            found["confidence_penalty"] = confidence_penalty(output.entropy)
        if logits is not None and "z_loss" in self.weights:
            found["z_loss"] = z_loss(logits, output.log_probs)
        return found

    def weight(self, name: str) -> float:
        """What a term's value is multiplied by."""
        return self.label_smoothing if name == "label_smoothing" else self.weights[name]


class HeadTap:
    """Stands before the autograd function of TRL's fused head, whichever that is, and keeps what `terms` need.

    Attributes:
        logits: (positions of the head,) of the last call.
        hidden: (positions of the head, width), where InfoNCE is on.
    """

    def __init__(self, terms: SftTerms) -> None:
        self._terms = terms
        self._inner: Any = None
        self.logits: TargetLogits | None = None
        self.hidden: torch.Tensor | None = None

    def apply(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
        temperature: float, chunk_size: int, softcap: float | None = None, scale: float = 1.0, *outputs: Any,
    ) -> Any:  # fmt: skip
        """As `trl.kernels.chunked_logprob.ChunkedLogProbFunction.apply`."""
        if self._terms.needs_logits:
            self.logits = target_logits(hidden, weight, bias, targets, Shape(scale, softcap, temperature))
        if "infonce" in self._terms.weights:
            self.hidden = hidden
        return self._inner.apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, *outputs)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In here the head passes by."""
        self._inner = trl_utils._ChunkedLogProbFunction
        trl_utils._ChunkedLogProbFunction = self
        try:
            yield
        finally:
            trl_utils._ChunkedLogProbFunction = self._inner

    def placed(self, mask: torch.Tensor) -> TargetLogits | None:
        """`logits` in the shape of `mask`, the positions that were labelled, zeros elsewhere."""
        if self.logits is None:
            return None
        return TargetLogits(*(_placed(values, mask) for values in self.logits))

    def states(self, mask: torch.Tensor) -> torch.Tensor | None:
        """`hidden`, (rows, length - 1, width), likewise."""
        return None if self.hidden is None else _placed(self.hidden, mask)


def _placed(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values of all positions, or of the labelled ones alone (TRL's head with Triton), in the mask's shape."""
    width = values.shape[1:]
    if len(values) == mask.numel():
        return values.view(*mask.shape, *width) * mask.view(*mask.shape, *(1,) * len(width))
    placed = values.new_zeros(mask.shape + width)
    return placed.masked_scatter(mask.view(*mask.shape, *(1,) * len(width)).expand(placed.shape), values)


def row_means(states: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """(rows, width) mean of the states (rows, positions, width) where `where` (rows, positions); 0 for none."""
    kept = where.unsqueeze(2)
    return (states.float() * kept).sum(1) / kept.sum(1).clamp(min=1)
