"""What the KL from the reference on the data costs: scoring, a DPO and an SFT evaluation with it and
without, on the same pairs and weights, in turns.

    python -m benchmarks.kl [--json] [--quick] [--n 8] [--rounds 3]

The model is a random one of SmolLM2-135M's shape (49,152 tokens) with LoRA r 16, whose reference is the adapter
switched off. Each is a ratio of CPU seconds, one thread: the median over rounds with its range. `scoring` compares with
scoring the policy alone; a run that also scores its reference once has that besides.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import datasets
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback
from trl import DPOConfig, SFTConfig

from benchmarks.score import MAX_LENGTH, cpu_seconds, drawn_pairs, numbered_tokenizer, smollm2_like
from dpo_diag.inference.scoring import PairTokens, score_pairs
from dpo_diag.models.kl import Reference
from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer

LORA = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def evaluations(
    kind: Any, model: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: str
) -> tuple[Callable[[], Any], ...]:
    """(without, with) an evaluation of the rows by a trainer of that kind."""
    config = DPOConfig if kind is DiagDPOTrainer else SFTConfig
    arguments = config(
        folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True, max_steps=1,
        save_strategy="no", per_device_eval_batch_size=4, max_length=MAX_LENGTH, dataloader_pin_memory=False,
    )  # fmt: skip
    options: dict[str, Any] = {"shared_prefix": "on"} if kind is DiagDPOTrainer else {"tiled_head": True}
    found = []
    for kl in (False, True):
        trainer = kind(
            model=copy.deepcopy(model), peft_config=LORA, args=arguments, processing_class=tokenizer, kl=kl,
            train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows), **options,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        found.append(trainer.evaluate)
    return tuple(found)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers that --json prints."""
    model, tokenizer = smollm2_like().eval(), numbered_tokenizer()
    rows = drawn_pairs(options.n, 0.2 if options.quick else 0.5)
    policy, encoded = get_peft_model(copy.deepcopy(model), LORA), PairTokens.of(rows, tokenizer, MAX_LENGTH)
    against = Reference(policy, None)
    proved = score_pairs(policy, encoded, step=0, progress=False).proved

    def score(reference: Any) -> Any:
        return score_pairs(policy, encoded, step=0, shared_prefix=proved, against=reference, progress=False)

    answers = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        works = {
            "scoring": (lambda: score(None), lambda: score(against)),
            "dpo_evaluation": evaluations(DiagDPOTrainer, model, tokenizer, rows, folder),
            "sft_evaluation": evaluations(DiagSFTTrainer, model, tokenizer, answers, folder),
        }
        for work in (w for both in works.values() for w in both):
            work()  # proofs, caches
        ratios: dict[str, list[float]] = {name: [] for name in works}
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(options.rounds):
            for name, both in works.items():
                plain, with_kl = (cpu_seconds(work)[0] for work in both)
                ratios[name].append(with_kl / plain)
                seconds[name].append(plain)
    found: dict[str, Any] = {
        "pairs": len(encoded.pairs),
        "scored_tokens": sum(len(pair.scored(side)) for pair, side in encoded.places),
    }
    for name, own in ratios.items():
        found[name] = {"ratio": statistics.median(own), "range": [min(own), max(own)]}
        found[name]["without_s"] = statistics.median(seconds[name])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--quick", action="store_true", help="shorter pairs, one round")
    parser.add_argument("--n", type=int, default=8, help="pairs")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = measure(options)
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found.pop('pairs')} pairs, {found.pop('scored_tokens')} scored tokens")
    for name, own in found.items():
        low, high = own["range"]
        print(f"{name}: x {own['ratio']:.2f} ({low:.2f} to {high:.2f}) of {own['without_s']:.2f} CPU s")


if __name__ == "__main__":
    main()
