"""KL divergence between two models' distributions, over the whole vocabulary, where they predict given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from dpo_diag.errors import DiagError
from dpo_diag.models.adapters import reference_adapter
from dpo_diag.models.batches import by_length
from dpo_diag.models.borrowed import borrowed
from dpo_diag.models.head import Head
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.packed.ways import Way
from dpo_diag.models.token_scores import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = 2**22
"""Logits of each model that stand at once: 16 MB in float32, and a few times 32 MB of their float64 log-probs."""


def kl_of_logits(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(policy || reference) = Σ_v p(v) (log p(v) - log q(v)) of each position, nats, float64 (float32 on MPS, which
    has no other): (positions,).

    A token that the policy never writes adds nothing; one that it writes and the reference never does gives inf.

    Args:
        policy, reference: logits, (positions, vocabulary) both; at temperature 1.
    """
    kind = torch.float32 if policy.device.type == "mps" else torch.float64
    log_p, log_q = (logits.to(kind).log_softmax(-1) for logits in (policy, reference))
    # -inf - -inf is no number, and p is 0 there. Rounding may leave a sum below 0, which no KL is.
    terms = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
    return terms.sum(-1).clamp(min=0)


def score_kl(
    policy: PreTrainedModel, reference: PreTrainedModel | None, spans: Sequence[Span], *, batch_size: int = 16
) -> list[FloatArray]:
    """KL(policy || reference) at each scored token of every span, nats: arrays of `Span.n_scored`, in the spans' order.

    One forward of each model over every span; the logits are made again for at most `LOGITS` at once. Models and random
    states are left as they were.

    Args:
        policy: a causal LM (or a PEFT model around one), unwrapped, on its device.
        reference: another model on the same device; None for the policy without its adapter (`reference_adapter`).
        batch_size: sequences in one forward.

    Raises:
        DiagError: models of different vocabularies, or one without an output embedding.
    """
    other = policy if reference is None else reference
    as_reference = partial(reference_adapter, policy) if reference is None else nullcontext
    found: list[FloatArray] = [np.empty(0) for _ in spans]
    scored = [i for i, span in enumerate(spans) if span.n_scored]
    with borrowed(policy), borrowed(other):
        ours, theirs = Head(policy), Head(other)
        if ours.vocabulary != theirs.vocabulary:
            raise DiagError(
                "the reference has another vocabulary than the policy", where="KL from the reference",
                got=f"{theirs.vocabulary} embeddings", expected=ours.vocabulary,
            )  # fmt: skip
        for batch in by_length([len(spans[i]) for i in scored], batch_size):
            own = [scored[i] for i in batch]
            part, way = [spans[i] for i in own], Way(batch_size=len(own))
            (read,) = way.read(ours, part)
            with as_reference():
                (read_too,) = way.read(theirs, part)
            step, pieces = max(1, LOGITS // ours.vocabulary), []
            for first in range(0, len(read.targets), step):
                rows = slice(first, first + step)
                with as_reference():  # an adapter may lie on the head itself
                    reference_logits = theirs.logits(read_too.seen.part(rows))
                pieces.append(kl_of_logits(ours.logits(read.seen.part(rows)), reference_logits))
            values = torch.cat(pieces).double().cpu().numpy()
            for i, one in zip(read.spans, np.split(values, np.cumsum(read.n_scored)[:-1]), strict=True):
                found[own[i]] = one
    return found
