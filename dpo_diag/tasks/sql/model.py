"""The task's model: a Llama of half a million parameters, from a configuration and a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpo_diag.config import TaskConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def build_model(task: TaskConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised float32 Llama with tied embeddings; 0.48M parameters by default.

    `initializer_range` is three times the usual 0.02, which suits wider models: here 200 SFT steps then reach an
    execution accuracy of about .64 instead of .23 (measured with the task's recipe).

    The same arguments give the same weights, and the caller's random state is left as it was.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=task.hidden_size,
        intermediate_size=task.intermediate_size,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        num_key_value_heads=task.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        attention_dropout=0.0,
        initializer_range=task.initializer_range,
        **ends,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.sft_seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config)
        model.float()
    model.generation_config = GenerationConfig(do_sample=False, **ends)
    return model
