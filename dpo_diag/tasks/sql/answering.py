"""Greedy answers to many prompts: left padded, longest prompts together, several hundred at once."""

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
    """One greedy answer per prompt, in the order of the prompts; [] for none.

    The tokenizer's padding side, the model's mode and its generation config are left as they were.
    """
    import torch
    from tqdm.auto import tqdm
    from transformers import GenerationConfig

    if not prompts:
        return []
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    ids = [tokenizer(prompt, add_special_tokens=True)["input_ids"] for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers: dict[int, Answer] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), tqdm(total=len(ids), desc=title, unit="prompt", disable=not progress) as bar:
            for start in range(0, len(order), batch_size):
                chunk = order[start : start + batch_size]
                width = max(len(ids[i]) for i in chunk)
                # Padded here rather than by the tokenizer, whose padding side belongs to training.
                rows = [[tokenizer.pad_token_id] * (width - len(ids[i])) + ids[i] for i in chunk]
                mask = [[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in chunk]
                out = model.generate(
                    input_ids=torch.tensor(rows, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                    generation_config=settings,
                )
                for i, row in zip(chunk, out[:, width:].tolist(), strict=True):
                    finished = tokenizer.eos_token_id in row
                    if finished:
                        row = row[: row.index(tokenizer.eos_token_id)]
                    answers[i] = Answer(tokenizer.decode(row, skip_special_tokens=True), finished)
                bar.update(len(chunk))
    finally:
        model.train(was_training)
    return [answers[i] for i in range(len(ids))]
