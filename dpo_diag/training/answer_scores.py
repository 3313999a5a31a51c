"""What the answers to fixed prompts are worth while training: correct answers, and how far they lie from the reference.

Each number stands under the prompts' first tag, {(tag, name): (value, n)}; prompts without one under "prompts".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_diag.inference.generation import encode_prompt
from dpo_diag.inference.prompts import to_prompts
from dpo_diag.models.kl import score_kl
from dpo_diag.models.packed.rows import Span

Rows = Sequence[Mapping[str, Any]]
Scores = dict[tuple[str, str], tuple[float, float]]


def _tag(row: Mapping[str, Any]) -> str:
    tags = row.get("tags")
    return str(tags[0]) if tags is not None and len(tags) else "prompts"


def score_by_tag(rows: Rows, name: str = "accuracy") -> Scores:
    """Share of correct answers: {(tag, name): (mean of `correct`, n)}.

    Only greedy answers (sample 0) that have a verdict count.
    """
    verdicts: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        correct = row.get("correct")
        if row.get("sample", 0) == 0 and correct is not None and correct == correct:
            verdicts[_tag(row)].append(float(correct))
    return {(tag, name): (sum(v) / len(v), float(len(v))) for tag, v in verdicts.items()}


def kl_by_tag(policy: Any, reference: Any, tokenizer: Any, prompts: Sequence[Any], rows: Rows) -> Scores:
    """KL from the reference on the answers, nats per token: {(tag, name): (Σ KL / tokens, tokens)}.

    `name` is "answers" for the greedy ones and "samples" for the seeded ones, which are never pooled: the mean over
    samples at temperature 1 estimates the models' KL, that over greedy answers says how far what is shown has moved.

    Args:
        policy, reference: as `models.kl.score_kl` takes them.
        prompts: those that were answered; `rows`: the answers, with their `token_ids`. {} for no tokens.
    """
    asked = {prompt.id: encode_prompt(tokenizer, prompt)[0] for prompt in to_prompts(prompts)}
    spans = [Span(asked[row["prompt_id"]], [int(token) for token in row["token_ids"]]) for row in rows]
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row, values in zip(rows, score_kl(policy, reference, spans), strict=True):
        of = sums[_tag(row), "answers" if row.get("sample", 0) == 0 else "samples"]
        of[0] += float(values.sum())
        of[1] += len(values)
    return {key: (total / n, n) for key, (total, n) in sums.items() if n}
