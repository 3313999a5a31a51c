"""A long text under one model, twice: with all that comes before each token, and with a short sliding context.

Definition of LongPPL (Fang et al. 2024, arXiv 2410.23771): the short context of token t >= truncation starts at
window * floor((t - truncation) / window), so that it holds at least `truncation` and fewer than `truncation + window`
tokens; earlier tokens have one context only. What is made of the two log-probs is decided where records are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dpo_diag.errors import DiagError
from dpo_diag.models.logps import score_tokens
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.packed.ways import Way

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRUNCATION, WINDOW = 4096, 1024
"""Of the paper's public code, in tokens."""


@dataclass(frozen=True)
class LongShort:
    """Log-probs (nats) of a text's tokens, both (tokens,) float64.

    Attributes:
        long: given everything before; NaN for the first token, which nothing predicts.
        short: given the sliding short context; equal to `long` where the two contexts are the same.
        n_windows: forwards that the short contexts took.
    """

    long: npt.NDArray[np.float64]
    short: npt.NDArray[np.float64]
    n_windows: int


def windows(n_tokens: int, truncation: int = TRUNCATION, window: int = WINDOW) -> list[tuple[int, int, int]]:
    """(start, first, end): tokens first..end-1 are predicted from a context that starts at `start`.

    The tokens from `truncation` on are covered once each; none for a text that is no longer than that.
    """
    starts = range(0, n_tokens - truncation, window)
    return [(s, s + truncation, min(s + truncation + window, n_tokens)) for s in starts]


def long_and_short(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    *,
    truncation: int = TRUNCATION,
    window: int = WINDOW,
    batch_size: int = 1,
) -> LongShort:
    """Both log-probs of every token. One forward over the text, then `batch_size` windows a forward.

    Logits exist for the counted positions of one forward, a limited number at a time; nothing of them is kept.

    Args:
        model: a causal LM on its device, whose context holds the whole text.
        token_ids: the text, with the tokenizer's begin token where it sets one.
        truncation, window: tokens; see the module's definition.

    Raises:
        DiagError: sizes below 1, a text no longer than `truncation` or longer than the model's context.
    """
    ids = [int(t) for t in token_ids]
    if truncation < 1 or window < 1 or batch_size < 1:
        raise DiagError("truncation, window and batch size are at least 1", got=f"{truncation}, {window}, {batch_size}",
                        usage=True)  # fmt: skip
    if len(ids) <= truncation:
        raise DiagError(
            "the text is no longer than the short context", got=f"{len(ids)} tokens",
            expected=f"more than {truncation}", hint="give a longer text or a smaller --truncation",
        )  # fmt: skip
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(limit, int) and len(ids) > limit:
        raise DiagError(
            "the text is longer than the model's context", got=f"{len(ids)} tokens", expected=f"at most {limit}",
            hint=f"take its beginning with --max-tokens {limit}",
        )  # fmt: skip
    spans = windows(len(ids), truncation, window)
    (whole,) = score_tokens(model, [Span(ids[:1], ids[1:])])
    long = np.concatenate([[np.nan], whole.logp])
    short = long.copy()
    contexts = [Span(ids[start:first], ids[first:end]) for start, first, end in spans]
    for (_, first, end), own in zip(spans, score_tokens(model, contexts, way=Way(batch_size=batch_size)), strict=True):
        short[first:end] = own.logp
    return LongShort(long, short, len(spans))
