"""Log-probs of given tokens under a model: the one way in which text is scored.

The LM head is applied at the wanted positions only, so that prompts, padding and large vocabularies cost nothing.
Prompts that several responses share are computed once where the model was proved to allow it (`packed`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from dpo_diag.errors import DiagError
from dpo_diag.models.batches import by_length, padded
from dpo_diag.models.borrowed import borrowed
from dpo_diag.models.head import Head
from dpo_diag.models.kl import Reference
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.packed.verify import Proved, SharedPrefix, prove
from dpo_diag.models.packed.ways import Way
from dpo_diag.models.token_scores import TokenScores, token_scores
from dpo_diag.shortages import out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def proved_way(model: PreTrainedModel, spans: Sequence[Span], way: Way, shared_prefix: SharedPrefix = "auto") -> Proved:
    """The quickest way for these spans that gives what the plain one gives (`packed.verify.prove`); the model and
    random states are left as they were."""
    with borrowed(model):
        return prove(Head(model), spans, way, shared_prefix)


def score_tokens(
    model: PreTrainedModel,
    spans: Sequence[Span],
    *,
    way: Way | None = None,
    n_likeliest: int = 0,
    hidden: bool = False,
    against: Reference | None = None,
    done: Callable[[int], object] = lambda n: None,
    say: Callable[[str], None] | None = None,
) -> list[TokenScores]:
    """Log-probs of every span's tokens, in the spans' order; model and random states are left as they were.

    Where memory runs out the spans that are left go through in batches of half the size, once; they are the same but
    for rounding.

    Args:
        model: a causal LM (or a PEFT model around one), unwrapped, on its device.
        way: one that was proved for this model (`proved_way`); None for padded batches of whole sequences.
        n_likeliest: also give so many likeliest choices at each position.
        hidden: also give the sum of the hidden states.
        against: also give the KL from this reference, for one forward of it.
        done: called with the number of spans of each finished batch.
        say: gets the line that says that the batches were halved; None prints to standard error.

    Raises:
        DiagError: a model without an output embedding.
    """
    scores = [TokenScores.empty() for _ in spans]
    way, left = way or Way(), dict.fromkeys(range(len(spans)))

    def read_with(way: Way) -> None:
        waiting = list(left)
        for read in way.read(head, [spans[i] for i in waiting]):
            own = token_scores(head, read.seen, read.targets, read.n_scored, n_likeliest=n_likeliest, hidden=hidden)
            if against is not None:
                found = against.kl(head, read.seen, [spans[waiting[i]] for i in read.spans], way)
                reverse, forward = (np.split(v.double().cpu().numpy(), np.cumsum(read.n_scored)[:-1]) for v in found)
                for one, *both in zip(own, reverse, forward, strict=True):
                    one.kl = (both[0], both[1])
            for i, one in zip(read.spans, own, strict=True):
                scores[waiting[i]] = one
                del left[waiting[i]]
            done(len(own))

    with borrowed(model), nullcontext() if against is None else borrowed(against.model):
        head = Head(model)
        smaller = None
        try:
            read_with(way)
        except Exception as error:
            smaller = way.halved() if out_of_memory(error) else None
            if smaller is None:
                raise
        if smaller is not None:  # behind the except block, whose error holds the tensors
            free_memory()
            size = f"{smaller.row_tokens} tokens a row" if way.name == "packed" else f"{smaller.batch_size} at once"
            (say or to_stderr)(
                f"out of memory: {len(left)} of {len(spans)} responses are scored in half batches, {size}"
            )
            read_with(smaller)
    return scores


def free_memory() -> None:
    """Give back what a forward that ran out of memory left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def to_stderr(line: str) -> None:
    """A line above a bar that may be shown."""
    from tqdm.auto import tqdm

    tqdm.write(line, file=sys.stderr)


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
        head = Head(model)
        logps = np.zeros((len(contexts), head.vocabulary), dtype=np.float32)
        for batch in by_length([len(c) for c in contexts], batch_size):
            ids, mask = padded([contexts[i] for i in batch], 0, head.device)
            last = mask.sum(1) - 1 + torch.arange(len(batch), device=head.device) * ids.shape[1]
            logits = head.logits(head.see(last, input_ids=ids, attention_mask=mask))
            logps[batch] = torch.log_softmax(logits.double(), dim=-1).float().cpu().numpy()
    return logps
