"""Log-probs of given tokens under a model: the one way in which text is scored, one forward per sequence.

The LM head is applied at the wanted positions only, a limited number at a time, so that prompts, padding and large
vocabularies cost nothing. This works for any causal LM whose logits are its output embedding applied to its last
hidden states; for others (scaled or soft-capped logits) the model's own logits at those positions are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dpo_diag.errors import DiagError
from dpo_diag.models.batches import by_length, device_of, forward_parameters, padded
from dpo_diag.models.borrowed import borrowed
from dpo_diag.models.packed.rows import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGITS = 64 * 2**20
"""Logits held at once (elements): 256 MB in float32."""
FloatArray = npt.NDArray[np.float64]


@dataclass
class TokenScores:
    """Per scored token: (tokens,) arrays; one shorter than the response where it has no prompt.

    Attributes:
        logp: of the token, nats.
        entropy: of the distribution that it comes from, nats.
        greedy: log-prob of the likeliest token there.
        rank: tokens with a larger logit; 0 for the first choice.
        likeliest: per token the (token id, log-prob) of the likeliest choices, largest first; [] if not asked for.
        hidden: sum over the positions of the hidden states that the head sees, (width,); None if not asked for.
    """

    logp: FloatArray
    entropy: FloatArray
    greedy: FloatArray
    rank: npt.NDArray[np.int64]
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    hidden: FloatArray | None = None


class LogitReader:
    """Logits of one model at chosen positions; use it inside `borrowed(model)`."""

    def __init__(self, model: PreTrainedModel, pad_id: int = 0) -> None:
        self.model, self.pad_id, self.device = model, pad_id, device_of(model)
        self.head: Any = model.get_output_embeddings()
        if self.head is None:
            raise DiagError("the model has no output embedding", got=type(model).__name__, expected="a causal LM")
        self.vocabulary = int(self.head.weight.shape[0])
        self._kwargs: dict[str, Any] = {"use_cache": False} if "use_cache" in forward_parameters(model) else {}
        self._plain: bool | None = None

    @contextmanager
    def _head_sees(self, take: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        handle = self.head.register_forward_pre_hook(lambda _, args: (take(args[0]), *args[1:]))
        try:
            yield
        finally:
            handle.remove()

    def read(
        self, sequences: Sequence[Sequence[int]], columns: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
        """One forward over right-padded sequences.

        Args:
            columns: for each sequence the positions that are wanted; at least one in all.

        Returns:
            The hidden states at all positions, sequence after sequence, (positions, width), and an iterator over their
            logits in float32, (some positions, vocabulary) at a time.
        """
        ids, mask = padded(sequences, self.pad_id, self.device)
        rows = [i for i, own in enumerate(columns) for _ in own]
        where = (torch.tensor(rows, device=self.device),
                 torch.tensor([c for own in columns for c in own], device=self.device))  # fmt: skip
        kept: list[torch.Tensor] = []

        def take(hidden: torch.Tensor) -> torch.Tensor:
            kept.append(hidden[where])
            # One position is enough to see whether the logits are the plain head's; all, where they are not.
            return kept[0][None] if self._plain is False else kept[0][None, :1]

        with self._head_sees(take):
            own = self.model(input_ids=ids, attention_mask=mask, **self._kwargs).logits[0]
        if not kept:
            raise DiagError("the model does not use its output embedding", got=type(self.model).__name__)
        hidden = kept[0]
        if self._plain is None:
            plain = self.head(hidden[:1])
            self._plain = plain.shape == own.shape and torch.allclose(plain, own, rtol=1e-5, atol=1e-5, equal_nan=True)
            if not self._plain:
                return self.read(sequences, columns)
        spans = [slice(at, at + self._chunk) for at in range(0, len(rows), self._chunk)]
        return hidden, ((self.head(hidden[span]) if self._plain else own[span]).float() for span in spans)

    @property
    def _chunk(self) -> int:
        return max(1, MAX_LOGITS // self.vocabulary)


def _statistics(
    logits: torch.Tensor, target: torch.Tensor, n_likeliest: int
) -> tuple[tuple[torch.Tensor, ...], list[list[tuple[int, float]]]]:
    """(logp, entropy, greedy, rank), each (positions,), and the likeliest choices; see `TokenScores`."""
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    wanted = logits.gather(1, target.unsqueeze(1))
    entropy = torch.special.entr((logits - total).exp()).sum(-1)
    top = logits.topk(max(1, min(n_likeliest, logits.shape[1])), dim=-1)
    best = (top.values - total).tolist() if n_likeliest else []
    likeliest = [list(zip(i, p, strict=True)) for i, p in zip(top.indices.tolist() if best else [], best, strict=True)]
    rank = (logits > wanted).sum(-1)
    return ((wanted - total).squeeze(1), entropy, (top.values[:, :1] - total).squeeze(1), rank), likeliest


def _measure(reader: LogitReader, batch: Sequence[Span], n_likeliest: int, hidden: bool) -> list[TokenScores]:
    wholes = [[*span.prompt, *span.response] for span in batch]
    firsts = [max(1, len(span.prompt)) for span in batch]
    # Each token is predicted from the position before it.
    columns = [range(first - 1, len(whole) - 1) for first, whole in zip(firsts, wholes, strict=True)]
    targets = [t for first, whole in zip(firsts, wholes, strict=True) for t in whole[first:]]
    if not targets:
        nothing = np.empty(0)
        return [TokenScores(nothing, nothing, nothing, nothing.astype(np.int64)) for _ in batch]
    states, chunks = reader.read(wholes, columns)
    target = torch.tensor(targets, dtype=torch.long, device=reader.device)
    parts, likeliest, at = [], [], 0
    for logits in chunks:
        numbers, top = _statistics(logits, target[at : at + len(logits)], n_likeliest)
        parts.append(numbers)
        likeliest += top
        at += len(logits)
    logp, entropy, greedy, rank = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    scores, at = [], 0
    for own in columns:
        span = slice(at, at + len(own))
        total = states[span].float().sum(0).double().cpu().numpy() if hidden else None
        scores.append(TokenScores(logp[span], entropy[span], greedy[span], rank[span], likeliest[span], total))
        at = span.stop
    return scores


def score_tokens(
    model: PreTrainedModel,
    spans: Sequence[Span],
    *,
    batch_size: int = 16,
    pad_id: int = 0,
    n_likeliest: int = 0,
    hidden: bool = False,
    done: Callable[[int], object] = lambda n: None,
) -> list[TokenScores]:
    """Log-probs of every span's tokens, in the spans' order; model and random states are left as they were.

    Args:
        model: a causal LM (or a PEFT model around one), unwrapped, on its device.
        batch_size: sequences in one forward; batches are made by length.
        pad_id: what fills shorter sequences; masked, so it changes nothing.
        n_likeliest: also give so many likeliest choices at each position.
        hidden: also give the sum of the hidden states.
        done: called with the number of spans of each finished batch.

    Raises:
        DiagError: a model without an output embedding.
    """
    scores: dict[int, TokenScores] = {}
    with borrowed(model):
        reader = LogitReader(model, pad_id)
        for batch in by_length([len(span) for span in spans], batch_size):
            scores |= zip(batch, _measure(reader, [spans[i] for i in batch], n_likeliest, hidden), strict=True)
            done(len(batch))
    return [scores[i] for i in range(len(spans))]


def next_token_logps(
    model: PreTrainedModel, contexts: Sequence[Sequence[int]], *, batch_size: int = 8
) -> npt.NDArray[np.float32]:
    """Log-probs (nats) of every token after each context: (contexts, vocabulary).

    Raises:
        DiagError: an empty context, a model without an output embedding.
    """
    if not all(len(c) for c in contexts):
        raise DiagError("a position has nothing before it", expected="a prompt or an earlier token")
    with borrowed(model):
        reader = LogitReader(model)
        logps = np.zeros((len(contexts), reader.vocabulary), dtype=np.float32)
        for batch in by_length([len(c) for c in contexts], batch_size):
            _, chunks = reader.read([contexts[i] for i in batch], [[len(contexts[i]) - 1] for i in batch])
            logps[batch] = torch.cat([torch.log_softmax(logits, dim=-1).cpu() for logits in chunks]).numpy()
    return logps
