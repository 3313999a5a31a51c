"""Tiny models (under 50k parameters), a byte-level tokenizer trained on the spot, and pairs to train on."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig

WORDS = ["red", "blue", "green", "cat", "dog", "bird", "sees", "eats", "near", "far", "two", "three", "é", "中"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most 300 tokens; pad and end of text are special."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<eos>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_model(seed: int = 0, scale: float = 0.3, noise: float = 0.0, **options: Any) -> LlamaForCausalLM:
    """A random Llama of 17k parameters; `scale` is large so that log-probs differ between models and tokens, `noise`
    is added to every weight."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, initializer_range=scale, **options,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def make_pairs(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs whose lengths differ between sides and rows."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        words = ["".join(f" {w}" for w in draw.choices(WORDS, k=draw.randint(1, 7))) for _ in range(2)]
        rows.append({"prompt": f"{i} {draw.choice(WORDS)}:", "chosen": words[0], "rejected": words[1]})
    return rows


def arguments(folder: Any, **options: Any) -> DPOConfig:
    """CPU, float32, constant learning rate, a log at every step."""
    known: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [],
        "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "per_device_train_batch_size": 3, "per_device_eval_batch_size": 4,
        "max_steps": 4, "seed": 7, "dataloader_pin_memory": False,
    }  # fmt: skip
    return DPOConfig(**(known | options))


def copies(model: LlamaForCausalLM) -> LlamaForCausalLM:
    return copy.deepcopy(model)


def theirs(row: dict[str, Any], name: str) -> Any:
    """TRL's own number in a row of ours: where the set's is another, it stands under trl/."""
    prefix = "eval_" if name.startswith("eval_") else ""
    return row.get(f"{prefix}trl/{name.removeprefix(prefix)}", row[name])
