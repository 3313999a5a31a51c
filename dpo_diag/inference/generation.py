"""Answers of one model to fixed prompts, as rows of outputs/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from dpo_diag.config import PromptsConfig
from dpo_diag.data.trained_tokens import DOUBLE_BOS, HINTS
from dpo_diag.errors import DiagError
from dpo_diag.inference.checkers import check, require_known
from dpo_diag.inference.prompts import Prompt, to_prompts
from dpo_diag.models.decoding import Decoding, Written, write_answers
from dpo_diag.records.schemas import TABLES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def decoding_from(config: PromptsConfig) -> Decoding:
    """The decoding that a configuration's `prompts` names: the greedy answer, and its samples."""
    return Decoding(
        max_new_tokens=config.max_new_tokens, n_samples=config.n_samples, temperature=config.temperature,
        top_p=config.top_p, seed=config.seed,
    )  # fmt: skip


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[list[int], str]:
    """(token ids, text as the model sees it) of a prompt, tokenised as TRL tokenises a training prompt.

    Plain text gets the tokenizer's special tokens, messages go through its chat template with a generation prompt.

    Raises:
        DiagError: messages without a chat template, a prompt without tokens.
    """
    if prompt.messages is not None:
        if not getattr(tokenizer, "chat_template", None):
            raise DiagError(
                "the tokenizer has no chat template", where=f"prompt {prompt.id}", got="messages",
                hint="give the prompt as text, or set tokenizer.chat_template",
            )  # fmt: skip
        messages = [dict(m) for m in prompt.messages]
        text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        text = str(prompt.prompt)
        ids = tokenizer(text)["input_ids"]
    if not ids:
        raise DiagError("the prompt has no tokens", where=f"prompt {prompt.id}", got=repr(text))
    return list(ids), text


def begin_note(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> str | None:
    """A line that says how many prompts of plain text bring the begin token that the tokenizer puts in front, too."""
    texts = [str(p.prompt) for p in prompts if p.messages is None]
    begin = [tokenizer.bos_token_id] * 2
    doubled = [text for text in texts if begin[0] is not None and list(tokenizer(text)["input_ids"][:2]) == begin]
    if not doubled:
        return None
    return f"fixed prompts: {DOUBLE_BOS} in {len(doubled)} of {len(texts)}; {HINTS[DOUBLE_BOS]}"


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Prompt | Mapping[str, Any]],
    decoding: Decoding | None = None,
    *,
    step: int,
    model_name: str = "policy",
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Rows of outputs/ : the answers of a model to prompts, in the order of the prompts, samples together.

    Nothing of model, tokenizer and random states is changed: see `models.decoding.write_answers`.

    Args:
        model: a causal LM (or a PEFT model around one), unwrapped (no DDP), on its device.
        tokenizer: its tokenizer.
        prompts: Prompts or their rows.
        decoding: None for greedy answers of up to 256 tokens.
        step: optimizer steps done.
        model_name: the `model` column: policy, ref, sft, ...
        batch_size: answers written at once.
        progress: show a bar.

    Returns:
        The columns of the table `outputs`; no rows for no prompts.

    Raises:
        DiagError: a prompt that does not fit the model, has no tokens, or names an unknown checker.
    """
    decoding = decoding or Decoding()
    asked = to_prompts(prompts)
    require_known(asked)
    columns = TABLES["outputs"].names
    if not asked:
        return pd.DataFrame(columns=columns)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in asked]
    token_ids, names = [ids for ids, _ in encoded], [prompt.id for prompt in asked]
    answers = write_answers(
        model, tokenizer, token_ids, decoding, prompt_ids=names, batch_size=batch_size,
        title=f"answers, step {step}, {model_name}", progress=progress,
    )  # fmt: skip
    frame = pd.DataFrame(
        [
            _row(prompt, text, sample, answer, answer.text(tokenizer), decoding)
            for prompt, (_, text), own in zip(asked, encoded, answers, strict=True)
            for sample, answer in enumerate(own)
        ]
    )
    frame["step"], frame["model"] = step, model_name
    frame["seed"] = frame["seed"].astype("Int64")
    return frame[columns]


def _row(
    prompt: Prompt, prompt_text: str, sample: int, answer: Written, text: str, decoding: Decoding
) -> dict[str, Any]:
    sampled = decoding.is_sampled(sample)
    return {
        "prompt_id": prompt.id,
        "sample": sample,
        "prompt": prompt_text,
        "tags": list(prompt.tags),
        "reference": prompt.reference,
        "text": text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "n_tokens": len(answer.token_ids),
        "sum_logp": answer.sum_logp,
        "entropy_sum": answer.entropy_sum,
        "correct": check(prompt, text),
        "decoding_hash": decoding.row_hash(sampled),
        "seed": decoding.seed if sampled else None,
    }
