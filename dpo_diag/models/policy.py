"""Policy, reference and tokenizer, ready for TRL's trainers; every doubt about them raised before any long work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpo_diag.config import ModelConfig, PeftConfig
from dpo_diag.errors import DiagError
from dpo_diag.models.adapters import check_adapter, lora_config, quantization_config
from dpo_diag.models.hub import check_name
from dpo_diag.models.loading import (
    check_device,
    choose_dtype,
    describe_model,
    frozen_copy,
    load_model,
    n_embeddings,
)
from dpo_diag.models.smollm2 import smollm2_folder
from dpo_diag.models.tokenizers import describe_tokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Policy:
    """What a trainer takes, and what run.json says about it.

    Attributes:
        model: the policy, on the CPU unless quantised (the trainer places it).
        tokenizer: with a pad token; pads on the right.
        peft_config: for TRL's `peft_config`; None for full fine-tuning.
        reference: for TRL's `ref_model`: a frozen copy, or the model that `model.reference` names; None with an adapter
            (switching it off gives the reference).
        device: "cpu", "cuda" or "mps".
        notes: what was decided for the user, a line each.
        meta: for run.json's `model`, `tokenizer` and `reference`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    peft_config: LoraConfig | None
    reference: PreTrainedModel | None
    device: str
    notes: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


def resolve_name(config: ModelConfig) -> str:
    """The hub id or folder that a configuration names.

    Raises:
        DiagError: no name, a wrong path, SmolLM2 that was not fetched.
    """
    if config.kind == "smollm2":
        return str(smollm2_folder())
    if not config.name:
        raise DiagError("no model named", where="model.name", expected="a hub id or a local folder", usage=True)
    return check_name(config.name)


def load_reference(config: ModelConfig, policy: PreTrainedModel, *, dtype: torch.dtype | str) -> PreTrainedModel:
    """The model that `model.reference` names, frozen, or a frozen copy of the policy.

    Raises:
        DiagError: it cannot be loaded, or its vocabulary is not the policy's (log-probs would not compare).
    """
    if not config.reference:
        return frozen_copy(policy)
    reference = load_model(
        check_name(config.reference),
        dtype=dtype,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    )
    ours, theirs = n_embeddings(policy), n_embeddings(reference)
    if ours != theirs:
        raise DiagError(
            "the reference has another vocabulary than the policy", where="model.reference", got=f"{theirs} embeddings",
            expected=ours, hint="take a reference of the same family",
        )  # fmt: skip
    reference.eval()
    reference.requires_grad_(False)
    return reference


def load_policy(
    config: ModelConfig, peft: PeftConfig | None = None, *, with_reference: bool = True, precomputed: bool = False
) -> Policy:
    """Policy, tokenizer, adapter configuration and reference from the configuration (`kind` hub or smollm2).

    Cheap checks (device, dtype, adapter, path) come first. `with_reference=False` leaves the reference out (SFT);
    `precomputed` makes no copy of the policy, which gives the reference's sums itself before it trains.

    Raises:
        DiagError: see the functions that it calls.
    """
    peft = peft or PeftConfig()
    device = check_device(config.device)
    check_adapter(peft, device)
    dtype, notes = choose_dtype(config.dtype, device)
    name = resolve_name(config)
    model = load_model(
        name,
        revision=config.revision,
        dtype=dtype,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        quantization=quantization_config(peft, dtype),
    )
    tokenizer_name = check_name(config.tokenizer, "tokenizer") if config.tokenizer else name
    tokenizer, tokenizer_notes = load_tokenizer(
        tokenizer_name,
        revision=config.revision if tokenizer_name == name else None,
        trust_remote_code=config.trust_remote_code,
        chat_template=config.chat_template,
        n_embeddings=n_embeddings(model),
    )
    tokenizer.padding_side = "right"
    reference = None
    if with_reference and (config.reference or (peft.kind == "none" and not precomputed)):
        reference = load_reference(config, model, dtype=dtype)
    meta: dict[str, Any] = {
        "model": describe_model(model, config.name or name),
        "tokenizer": describe_tokenizer(tokenizer, config.tokenizer or config.name),
    }
    if with_reference:
        own = "precomputed" if precomputed else "adapter switched off" if peft.kind != "none" else "frozen copy"
        kind = "named model" if config.reference else own
        meta["reference"] = {"kind": kind, "name": config.reference or config.name or name}
    return Policy(
        model=model,
        tokenizer=tokenizer,
        peft_config=lora_config(peft, model),
        reference=reference,
        device=device,
        notes=[*notes, *tokenizer_notes],
        meta=meta,
    )
