"""Tiny random models of many architectures, for what must hold whatever the architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

VOCABULARY = 199
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
SMALL = {k: BASE[k] for k in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "initializer_range")}
FALCON = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MAMBA = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
SSM = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ALTERNATING = ["sliding_attention", "full_attention"]
WINDOW = 8


def _base(*without: str, **more: Any) -> dict[str, Any]:
    return {k: v for k, v in BASE.items() if k not in without} | more


RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", BASE),
    "Qwen2": ("Qwen2", BASE),
    "Qwen2 sliding": ("Qwen2", _base(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)),
    "Qwen3": ("Qwen3", _base(head_dim=8)),
    "GPT-2": ("GPT2", {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "GPT-NeoX": ("GPTNeoX", _base("num_key_value_heads")),
    "Gemma 2": ("Gemma2", _base(head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8,
                                attn_logit_softcapping=2.0, final_logit_softcapping=5.0)),
    "Gemma 3": ("Gemma3", _base(head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=ALTERNATING)),
    "Mistral": ("Mistral", _base(sliding_window=WINDOW, head_dim=8)),
    "Phi-3": ("Phi3", _base(sliding_window=WINDOW)),
    "OLMo": ("Olmo", BASE),
    "OLMo 2": ("Olmo2", BASE),
    "Qwen2-MoE": ("Qwen2Moe", _base(**EXPERTS, shared_expert_intermediate_size=16)),
    "Qwen2-MoE sliding": ("Qwen2Moe", _base(
        **EXPERTS, shared_expert_intermediate_size=16, use_sliding_window=True, sliding_window=WINDOW,
        max_window_layers=1)),
    "Mixtral": ("Mixtral", _base(num_local_experts=4, num_experts_per_tok=2, head_dim=8)),
    "gpt-oss": ("GptOss", _base(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW,
                                rope_parameters={"rope_type": "default", "rope_theta": 10000.0})),
    "Cohere": ("Cohere", _base(logit_scale=0.25)),
    "Granite": ("Granite", _base(logits_scaling=4.0, attention_multiplier=0.2)),
    "OPT": ("OPT", {**SMALL, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "max_position_embeddings": 256, "word_embed_proj_dim": 32}),
    "DeepSeek-V3": ("DeepseekV3", _base(
        "num_key_value_heads", moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, n_shared_experts=1, kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=12, first_k_dense_replace=1, num_key_value_heads=4)),
}  # fmt: skip
"""Name -> (class of the model, settings): those whose packed rows are exact."""

WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "Falcon": ("Falcon", {**FALCON, "alibi": False, "new_decoder_architecture": False}),
    "BLOOM": ("Bloom", {**SMALL, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "Mamba": ("Mamba", MAMBA),
    "Mamba 2": ("Mamba2", {**MAMBA, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 16}),
    "Bamba": ("Bamba", _base(attn_layer_indices=[1], mamba_expand=2, **SSM)),
    "Falcon-H1": ("FalconH1", _base(head_dim=8, mamba_d_ssm=64, **SSM)),
    "Qwen3-Next": ("Qwen3Next", _base(
        **EXPERTS, head_dim=8, shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"])),
    "LFM2": ("Lfm2", _base(layer_types=["conv", "full_attention"])),
}  # fmt: skip
"""Those that see a packed row as one sequence (recurrent layers, an attention of their own)."""


def make(name: str) -> Any:
    """The model, in evaluation mode; the same every time."""
    family, settings = (RIGHT | WRONG)[name]
    kinds = {"GPT2": "GPT2LMHeadModel"}
    configs = {"Gemma3": "Gemma3TextConfig"}
    cls: Callable[[Any], Any] = getattr(hf, kinds.get(family, f"{family}ForCausalLM"))
    config = getattr(hf, configs.get(family, f"{family}Config"))(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config)
    model.eval()
    return model
