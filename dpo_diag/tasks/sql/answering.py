"""Greedy answers to many questions of the task, several hundred at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 56  # the longest gold answer of the task has under 50 tokens


@dataclass(frozen=True)
class Answer:
    """What the model wrote after a prompt: text without special tokens, and whether it ended it itself."""

    text: str
    finished: bool


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int = 250,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = True,
    title: str = "answering",
) -> list[Answer]:
    """One greedy answer per prompt, in the order of the prompts; [] for none. The model is left as it was."""
    from dpo_diag.models.decoding import Decoding, write_answers

    ids = [tokenizer(prompt, add_special_tokens=True)["input_ids"] for prompt in prompts]
    answers = write_answers(
        model, tokenizer, ids, Decoding(max_new_tokens), batch_size=batch_size, title=title, progress=progress
    )
    return [Answer(own.text(tokenizer), own.stopped) for (own,) in answers]
