"""KL divergences between two models' distributions, over the whole vocabulary, where they predict given tokens.

Both ways in one pass over tiles of both models' logits (`head_tiles`): with z and w their logits, KL(p || q) is
Σ p (z - w) less the difference of the normalisers' logs, and KL(q || p) the same the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from dpo_diag.errors import DiagError
from dpo_diag.models.adapters import reference_adapter
from dpo_diag.models.borrowed import borrowed
from dpo_diag.models.head import Head, Seen
from dpo_diag.models.head_tiles import Tile
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.packed.verify import architecture
from dpo_diag.models.packed.ways import Way
from dpo_diag.models.token_scores import FloatArray
from dpo_diag.models.two_heads import HeadInput, tile_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = 2**22
"""Logits of each model that stand at once where a head has no tiles, or on an accelerator: 16 MB in float32."""
Switch = Callable[[], AbstractContextManager[object]]
"""Inside of it a module is the reference."""


class KL(NamedTuple):
    """Of each position, nats, (positions,) each, float64 (float32 on MPS, which has no other).

    A token that one model never writes adds nothing to the mean over that model's tokens; one that it writes and the
    other never does gives inf.

    Attributes:
        reverse: KL(policy || reference) = Σ_v p(v) (log p(v) - log q(v)), the one that DPO's β weighs.
        forward: KL(reference || policy) = Σ_v q(v) (log q(v) - log p(v)).
    """

    reverse: torch.Tensor
    forward: torch.Tensor


class _Side:
    """Of one model: the largest logit m so far, Σ exp(z - m) and Σ exp(z - m) (z - w)."""

    def __init__(self, n: int, device: torch.device) -> None:
        kind = torch.float32 if device.type == "mps" else torch.float64
        # Not -inf: a tile of tokens that are never written would be no number.
        self.largest = torch.full((n,), torch.finfo(torch.float32).min, dtype=torch.float32, device=device)
        self.total, self.weighted = (torch.zeros(n, dtype=kind, device=device) for _ in range(2))

    def add(self, rows: slice, z: torch.Tensor, difference: torch.Tensor) -> None:
        """Take logits, which are overwritten; `difference`: them less the other model's."""
        largest, total, weighted = self.largest[rows], self.total[rows], self.weighted[rows]
        now = torch.maximum(largest, z.amax(1))
        kept = (largest - now).to(total.dtype).exp()
        e = z.sub_(now.unsqueeze(1)).exp_()
        terms = e * difference
        if terms.isnan().any():  # 0 · inf: a token that this model never writes
            terms.masked_fill_((e == 0) & terms.isnan(), 0)
        weighted.mul_(kept).add_(terms.sum(1, dtype=total.dtype))
        total.mul_(kept).add_(e.sum(1, dtype=total.dtype))
        largest.copy_(now)


class KLSums:
    """The sums of `n` positions, of one pair of tiles after the other."""

    def __init__(self, n: int, device: torch.device) -> None:
        self._policy, self._reference = _Side(n, device), _Side(n, device)

    def add(self, policy: Tile, reference: Tile) -> None:
        """Take two tiles of the same positions and tokens; both are overwritten."""
        z, w = policy.logits, reference.logits
        difference = torch.sub(z, w, out=policy.spare)
        if difference.isnan().any():  # -inf - -inf; where a logit is no number, its exp says so
            difference.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        self._policy.add(policy.rows, z, difference)
        self._reference.add(policy.rows, w, difference.neg_())

    @property
    def kl(self) -> KL:
        """What the tiles so far give; rounding may leave a sum below 0, which no KL is."""
        p, q = self._policy, self._reference
        log_z = (p.largest.to(p.total.dtype) - q.largest) + (p.total.log() - q.total.log())
        return KL((p.weighted / p.total - log_z).clamp(min=0), (q.weighted / q.total + log_z).clamp(min=0))


def kl_of_tiles(tiles: Iterable[tuple[Tile, Tile]], n: int, device: torch.device) -> KL:
    """Of the policy's and the reference's tiles, side by side."""
    sums = KLSums(n, device)
    for policy, reference in tiles:
        sums.add(policy, reference)
    return sums.kl


def kl_of_logits(policy: torch.Tensor, reference: torch.Tensor) -> KL:
    """Of whole logits, (positions, vocabulary) both, at temperature 1; they are left as they are."""
    whole = slice(0, len(policy)), slice(0, policy.shape[1])
    pair = [Tile(*whole, z.float().clone(), torch.empty_like(z, dtype=torch.float32)) for z in (policy, reference)]
    return kl_of_tiles([(pair[0], pair[1])], len(policy), policy.device)


@torch.no_grad()
def kl_of_inputs(policy: HeadInput, reference: HeadInput) -> KL:
    """Of two heads at the same positions.

    Raises:
        DiagError: heads of different vocabularies.
    """
    return kl_of_tiles(tile_pairs(policy, reference), len(policy.hidden), policy.hidden.device)


def kl_of_heads(policy: Head, seen: Seen, reference: Head, seen_too: Seen, as_reference: Switch = nullcontext) -> KL:
    """Of two models' heads at the same positions; `as_reference`: where one module is both.

    Raises:
        DiagError: models of different vocabularies.
    """
    if policy.vocabulary != reference.vocabulary:
        raise DiagError(
            "the reference has another vocabulary than the policy", where="KL from the reference",
            got=f"{reference.vocabulary} embeddings", expected=policy.vocabulary,
        )  # fmt: skip
    n, device = len(seen.hidden), seen.hidden.device
    if policy.is_tiled and reference.is_tiled and seen.logits is None and seen_too.logits is None:
        return kl_of_tiles(zip(policy.tiles(seen), reference.tiles(seen_too), strict=True), n, device)

    def parts() -> Iterator[KL]:
        step = max(1, LOGITS // policy.vocabulary)
        for first in range(0, n, step):
            rows = slice(first, first + step)
            with as_reference():  # an adapter may lie on the head itself
                theirs = reference.logits(seen_too.part(rows))
            yield kl_of_logits(policy.logits(seen.part(rows)), theirs)

    return KL(*map(torch.cat, zip(*parts(), strict=True)))


class Reference:
    """The model that a policy is compared with, at the places where the policy was read; use it inside `borrowed` of
    both.

    Args:
        policy: a causal LM (or a PEFT model around one), unwrapped.
        reference: another model on the same device; None for the policy without its adapter (`reference_adapter`).
    """

    def __init__(self, policy: PreTrainedModel, reference: PreTrainedModel | None) -> None:
        self.model = policy if reference is None else reference
        self._switch: Switch = partial(reference_adapter, policy) if reference is None else nullcontext
        self._head = Head(self.model)
        self._alike = reference is None or architecture(policy) == architecture(reference)

    def kl(self, head: Head, seen: Seen, spans: Sequence[Span], way: Way) -> KL:
        """Of what the policy's head saw of these spans, one after the other; one forward of the reference.

        Args:
            way: proved for the policy; a reference of another architecture is read in padded batches.
        """
        places: list[Seen | None] = [None] * len(spans)
        way = way if self._alike else replace(way, name="plain")
        with self._switch():
            for read in way.read(self._head, spans):
                ends = np.cumsum(read.n_scored).tolist()
                for i, n, end in zip(read.spans, read.n_scored.tolist(), ends, strict=True):
                    places[i] = read.seen.part(slice(end - n, end))
        found = [place for place in places if place is not None]
        logits = [place.logits for place in found if place.logits is not None]
        joined = Seen(torch.cat([place.hidden for place in found]), torch.cat(logits) if logits else None)
        return kl_of_heads(head, seen, self._head, joined, self._switch)


def score_kl(
    policy: PreTrainedModel, reference: PreTrainedModel | None, spans: Sequence[Span], *, batch_size: int = 16
) -> list[FloatArray]:
    """KL(policy || reference) at each scored token of every span, nats: arrays of `Span.n_scored`, in the spans' order.

    One forward of each model over every span. Models and random states are left as they were.

    Args:
        policy, reference: as `Reference` takes them.
        batch_size: sequences in one forward.

    Raises:
        DiagError: models of different vocabularies, or one without an output embedding.
    """
    other = policy if reference is None else reference
    found: list[FloatArray] = [np.empty(0) for _ in spans]
    with borrowed(policy), borrowed(other):
        ours, theirs, way = Head(policy), Reference(policy, reference), Way(batch_size=batch_size)
        for read in way.read(ours, spans):
            values = theirs.kl(ours, read.seen, [spans[i] for i in read.spans], way).reverse.double().cpu().numpy()
            for i, one in zip(read.spans, np.split(values, np.cumsum(read.n_scored)[:-1]), strict=True):
                found[i] = one
    return found
