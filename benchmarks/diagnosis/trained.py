"""Real trainings of a Llama with about 21,000 parameters, each in seconds, with a cause built into data or settings.

The world: a prompt names a colour, the right answer repeats it, the wrong one names another. The model is first taught
both kinds of answers for a moment (so that it has something to lose), then trained with DPO and recorded as any run is.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig

from dpo_diag.training import DiagDPOTrainer

WORDS = ["red", "blue", "green", "gray", "pink", "cat", "dog", "bird", "sees", "eats", "near", "far", "two", "three"]
COLOURS = WORDS[:5]
Pair = dict[str, str]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most 300 tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<eos>"], show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, initializer_range=0.1,
    ))  # fmt: skip


def colour_pairs(n: int, seed: int) -> list[Pair]:
    """Right colour against a wrong one, each with a few words behind it."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        right, wrong = draw.sample(COLOURS, 2)
        tails = [" ".join(draw.choices(WORDS[5:], k=draw.randint(1, 4))) for _ in range(2)]
        rows.append({"prompt": f"{seed}.{i} {right}:", "chosen": f" {right} {right} {tails[0]}",
                     "rejected": f" {wrong} {wrong} {tails[1]}"})  # fmt: skip
    return rows


def near_pairs(n: int, seed: int) -> list[Pair]:
    """Long pairs that differ in one word (what DPOP describes: the shared rest falls on both sides)."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        words = draw.choices(WORDS[5:], k=8)
        other = list(words)
        other[1] = draw.choice([w for w in WORDS[5:] if w != words[1]])
        rows.append({"prompt": f"{seed}.{i}:", "chosen": " " + " ".join(words), "rejected": " " + " ".join(other)})
    return rows


def random_pairs(n: int, seed: int) -> list[Pair]:
    """No rule says which side is chosen: what is learned does not carry over."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        sides = [" " + " ".join(draw.choices(WORDS, k=draw.randint(3, 6))) for _ in range(2)]
        rows.append({"prompt": f"{seed}.{i} {draw.choice(WORDS)}:", "chosen": sides[0], "rejected": sides[1]})
    return rows


@dataclass(frozen=True)
class Training:
    """One training: data, settings, and what is true of it."""

    name: str
    truth: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    strength: str = "clear"
    train: Callable[[], list[Pair]] = lambda: colour_pairs(96, 1)
    held_out: Callable[[], list[Pair]] = lambda: colour_pairs(48, 2)
    foreign_reference: bool = False
    taught: bool = True
    options: dict[str, Any] = field(default_factory=dict)


SMALL = {"learning_rate": 3e-4, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}

TRAININGS: tuple[Training, ...] = (
    Training("healthy, SFT term", strength="healthy", options=SMALL),
    Training("healthy, low rate", strength="healthy", options={"learning_rate": 1e-4, "beta": 0.3, "max_steps": 80}),
    Training("healthy, ipo with SFT term", strength="healthy",
             options={"learning_rate": 2e-4, "loss_type": ["ipo", "sft"], "loss_weights": [0.02, 1.0]}),
    Training("displacement", ("DVG001",), ("DVG004", "DVG012", "DVG003", "DVG005", "DVG022", "DVG002", "DVG009"),
             train=lambda: near_pairs(96, 3), held_out=lambda: near_pairs(48, 4),
             options={"learning_rate": 3e-3, "beta": 0.1, "max_steps": 80}),
    Training("collapse and floor", ("DVG002", "DVG010"), ("DVG001", "DVG003", "DVG004", "DVG005", "DVG012", "DVG014"),
             train=lambda: colour_pairs(24, 1), held_out=lambda: colour_pairs(24, 1),
             options={"learning_rate": 1e-2, "max_steps": 120}),
    Training("dead (rate 0)", ("DVG008",), ("DVG009",), options={"learning_rate": 0.0}),
    Training("not learning (rate 1e-8)", ("DVG009",), options={"learning_rate": 1e-8}),
    Training("reference mismatch", ("DVG007",), ("DVG001", "DVG009", "DVG002", "DVG020", "DVG005"),
             foreign_reference=True, options=SMALL),
    Training("diverged (rate 1)", ("DVG020",), ("DVG001", "DVG002", "DVG003", "DVG004", "DVG005", "DVG009", "DVG012",
                                              "DVG016", "DVG022"),
             train=lambda: random_pairs(96, 5), held_out=lambda: random_pairs(48, 6),
             options={"learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 100.0}),
    Training("truncation", ("DVG006",), ("DVG015",), options={**SMALL, "max_length": 13}),
    Training("contradictory pairs", ("DVG014",), ("DVG009",),
             train=lambda: (p := colour_pairs(40, 1)) + [r | {"chosen": r["rejected"], "rejected": r["chosen"]}
                                                         for r in p[:20]],
             options=SMALL),
    Training("leaked pairs", ("DVG014",), held_out=lambda: colour_pairs(96, 1)[:30], options=SMALL),
    Training("overfit", ("DVG022",), ("DVG001", "DVG002", "DVG003", "DVG004", "DVG005", "DVG009", "DVG010", "DVG012"),
             train=lambda: random_pairs(24, 7), held_out=lambda: random_pairs(200, 8),
             options={"learning_rate": 1e-2, "max_steps": 120}),
)  # fmt: skip


def teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], steps: int = 60) -> None:
    """A moment of plain language modelling on both sides of the pairs."""
    texts = [p["prompt"] + p[side] + "<eos>" for p in pairs for side in ("chosen", "rejected")]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def run(training: Training, folder: Path) -> Path:
    """Train and record; returns the run folder."""
    tokenizer = make_tokenizer()
    model = make_model()
    if training.taught:
        teach(model, tokenizer, colour_pairs(100, 99) + near_pairs(40, 98) + random_pairs(40, 97))
    reference = copy.deepcopy(model)
    if training.foreign_reference:
        torch.manual_seed(5)
        with torch.no_grad():
            for weight in reference.parameters():
                weight.add_(torch.randn_like(weight) * 0.15 * weight.std())
    known: dict[str, Any] = {
        "output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "report_to": [], "logging_steps": 1, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 12,
        "disable_tqdm": True, "lr_scheduler_type": "linear", "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 24, "max_steps": 60, "seed": 7, "dataloader_pin_memory": False,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = DiagDPOTrainer(
            model=model, ref_model=reference, args=DPOConfig(**(known | training.options)),
            train_dataset=Dataset.from_list(training.train()), eval_dataset=Dataset.from_list(training.held_out()),
            processing_class=tokenizer, recorder=folder / "run",
        )  # fmt: skip
        trainer.train()
    return folder / "run"
