"""The everyday question: what does a loss of 2.3 mean as perplexity, and what does it not mean?

PPL = exp(loss) for a cross-entropy in nats per token. People read loss badly and perplexity well: 2.5 -> 2.3 looks flat
and is 12.2 -> 10.0. The scale is the vocabulary's uniform guess, log V nats, i.e. a perplexity of V.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.records.metrics import safe_exp

NOT_MEANT = (
    "a DPO loss is not a cross-entropy, so exp of it is not a perplexity "
    "(it starts at ln 2 = 0.6931 whatever the model)",
    "perplexities of different tokenizers do not compare: use bits per byte",
    "an average hides which answers and which tokens it comes from; a mean of perplexities can be one hard answer",
    "a lower value says that these texts became likelier, not that what the model writes became better",
)
LEVELS = (
    (0.05, "close to certain of every token: memorised or templated text, or a target that leaked into the input"),
    (0.35, "fluent: usual for a trained model on text of a kind that it knows"),
    (0.65, "weak: early in training, or text of a kind that the model hardly knows"),
    (0.98, "hardly better than guessing: look for a tokenizer, label-shift or data mistake before training on"),
    (1.02, "a uniform guess over the vocabulary: the model knows nothing of these targets"),
    (math.inf, "worse than a uniform guess: confidently wrong; a mask, shift or tokenizer mistake is likely"),
)
"""(upper bound of the share of the uniform loss, what it usually means)."""


def loss_level(loss: float, vocab_size: int | None = None) -> dict[str, Any]:
    """What a cross-entropy (nats per token) means.

    Returns: {"loss", "perplexity" (None above the float range), "log10_perplexity", "bits_per_token", "vocab_size",
        "uniform_loss", "uniform_perplexity", "share_of_uniform", "means", "does_not_mean"}; the vocabulary's numbers
        are None without `vocab_size`.

    Raises:
        DiagError: a loss that is negative or no number, a vocabulary below 2.
    """
    if not math.isfinite(loss):
        raise DiagError("a loss must be a finite number", got=loss, usage=True)
    if loss < 0:
        raise DiagError(
            "a cross-entropy cannot be negative", got=loss, hint="pass the loss, not the log-prob", usage=True
        )
    if vocab_size is not None and vocab_size < 2:
        raise DiagError("a vocabulary has at least 2 tokens", where="--vocab-size", got=vocab_size, usage=True)
    uniform = None if vocab_size is None else math.log(vocab_size)
    share = None if uniform is None else loss / uniform
    perplexity = safe_exp(loss)
    choices = f"as unsure as between {perplexity:.4g} equally likely tokens at each step"
    return {
        "loss": loss,
        "perplexity": perplexity if math.isfinite(perplexity) else None,
        "log10_perplexity": loss / math.log(10),
        "bits_per_token": loss / math.log(2),
        "vocab_size": vocab_size,
        "uniform_loss": uniform,
        "uniform_perplexity": vocab_size,
        "share_of_uniform": share,
        "means": [choices] if share is None else [choices, next(text for top, text in LEVELS if share < top)],
        "does_not_mean": list(NOT_MEANT),
    }


def compare_levels(losses: list[float]) -> list[dict[str, Any]]:
    """Change from each loss to the next: {"from", "to", "ppl_from", "ppl_to", "ppl_ratio"}; empty below two."""
    return [
        {
            "from": a, "to": b, "ppl_from": safe_exp(a), "ppl_to": safe_exp(b), "ppl_ratio": safe_exp(b - a),
        }
        for a, b in itertools.pairwise(losses)
    ]  # fmt: skip
