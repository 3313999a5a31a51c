"""Of run.json, what a model was: the policy, its adapter, its tokenizer, and the reference beside it.

The annotations are the schema, as in `run_info`.
"""

# ruff: noqa: RUF009 (`declared` is dataclasses.field, and frozen dataclasses are safe defaults)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dpo_diag.records.typed_json import declared


@dataclass(frozen=True)
class AdapterInfo:
    """A PEFT adapter on the model."""

    type: str | None = declared("PEFT's name of the method: LORA, ...")
    r: int | None = declared("rank")
    lora_alpha: float | None = declared("scale is lora_alpha / r (rsLoRA: / sqrt r)")
    lora_dropout: float | None = declared("dropout before the adapter")
    target_modules: tuple[str, ...] | str | None = declared("modules that it changes, or a pattern of their names")
    use_rslora: bool | None = declared("rank-stabilised scale")
    use_dora: bool | None = declared("DoRA")
    task_type: str | None = declared("PEFT's task: CAUSAL_LM")


@dataclass(frozen=True)
class PrefixInfo:
    """How scoring computed prompts that several responses share."""

    way: Literal["packed", "cached", "plain"] | None = declared(
        "packed: once, the responses behind it in one row | cached: once, into the model's cache | plain: with each"
    )
    difference: float | None = declared("from the plain way before the first batch, in float32", "nats per response")
    refused: Mapping[str, str] = declared("quicker way -> why it was not gone", factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """A model: the policy, or one that was scored."""

    name: str | None = declared("folder or hub name")
    folder: str | None = declared("where its weights lay on the machine that trained, if its name does not say so")
    revision: str | None = declared("commit on the hub")
    architecture: str | None = declared("class name in transformers")
    n_parameters: int | None = declared("all parameters", "count")
    n_trainable: int | None = declared("parameters that training changes", "count")
    dtype: str | None = declared("torch's name of the weights' type: float32, bfloat16")
    attn_implementation: str | None = declared("transformers' name: sdpa, eager, flash_attention_2")
    fingerprint: str | None = declared("SHA-256 over names, types, shapes and bytes of the weights")
    adapter: AdapterInfo | None = declared("adapter; null for full fine-tuning")
    shared_prefix: PrefixInfo | None = declared("scored: how prompts that several responses share were computed")


@dataclass(frozen=True)
class TokenizerInfo:
    """A tokenizer."""

    name: str | None = declared("folder or hub name")
    vocab_size: int | None = declared("tokens", "count")
    pad_token: str | None = declared("padding token")
    eos_token: str | None = declared("end token")
    eos_token_id: int | None = declared("its id")
    chat_template: bool | None = declared("whether it has a chat template")
    fingerprint: str | None = declared("SHA-256 over rules, vocabulary, special tokens, chat template")


@dataclass(frozen=True)
class ReferenceStart:
    """Policy and reference before the first step, on a few pairs of the first batch."""

    agrees: bool | None = declared("whether they agree but for rounding")
    expected: bool | None = declared("whether they must agree: no other model was named as the reference")
    why: str | None = declared("why they must, or need not")
    mean_gap: float | None = declared("mean |log-ratio|", "nats per response")
    largest_gap: float | None = declared("the largest", "nats per response")
    tolerance: float | None = declared("what rounding can do", "nats per response")
    responses: int | None = declared("responses that were compared", "count")
    cause: str | None = declared("what is wrong, where they must agree and do not")


@dataclass(frozen=True)
class ReferenceKey:
    """What decides a reference's log-probs of a pair: where all of it is the same, they are taken from records."""

    model: str | None = declared("SHA-256 over the weights under an adapter: names, types, shapes, bytes")
    settings: str | None = declared("hash of what uses the weights: rotary embeddings, windows, scales")
    revision: str | None = declared("commit on the hub")
    adapter: str | None = declared(
        "hash of the adapter's weights and scale; null for none, or one that is switched off"
    )
    tokenizer: str | None = declared("SHA-256 over rules, vocabulary, special tokens, chat template")
    template: str | None = declared("hash of the chat template; null for none")
    max_length: int | None = declared("prompt and response are cut to this; null for no limit", "tokens")
    truncation_mode: str | None = declared("which end is kept")
    autocast: str | None = declared("type that its products were rounded to; null for the weights' own")


@dataclass(frozen=True)
class ReferenceInfo(ModelInfo):
    """The reference, against which log-ratios are taken."""

    kind: str | None = declared("where its log-probs come from: frozen copy, named model, adapter switched off, ...")
    fixed: bool | None = declared("false where it follows the policy during training")
    step: int | None = declared("the policy at this step is the reference", "optimizer steps")
    start: ReferenceStart | None = declared("whether the policy equalled it before the first step")
    source: str | None = declared("the rows that hold its log-probs: an import's, a scored run's, a reference store's")
    tokenizer: TokenizerInfo | None = declared("its tokenizer, where it is not the policy's")
    key: ReferenceKey | None = declared("what decides its log-probs, where a reference store is used")
