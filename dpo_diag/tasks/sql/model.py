"""The task's model: a Llama of half a million parameters, from a config and a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def build_model(
    *,
    vocab_size: int,
    pad_token_id: int,
    eos_token_id: int,
    hidden_size: int = 128,
    layers: int = 2,
    heads: int = 4,
    intermediate_size: int = 320,
    max_positions: int = 512,
    initializer_range: float = 0.06,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A freshly initialised float32 Llama with tied embeddings; the defaults with 768 tokens have 0.48M parameters.

    `initializer_range` is three times the usual 0.02, which suits wider models: here 200 SFT steps then reach an
    execution accuracy of about .64 instead of .23 (measured with the task's recipe).

    The same arguments give the same weights, and the caller's random state is left as it was.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=pad_token_id,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        attention_dropout=0.0,
        initializer_range=initializer_range,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.float32)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=pad_token_id, eos_token_id=eos_token_id)
    return model
