"""What measuring costs: CPU time per optimizer step of stock TRL and of DiagDPOTrainer, step by step in turns.

    python benchmarks/training_overhead.py [--vocabulary 768] [--rounds 6] [--logging-steps 10]

Every variant trains with its own trainer in a thread of its own, and a turnstile lets exactly one of them take exactly
one step at a time: first stock TRL its step 1, then each variant its step 1, and so on, on the same pairs and weights.
What the machine does besides slows down neighbouring steps alike. A step's time is the process's CPU time from its
beginning to the next one's, logging and writing included. Printed: the mean of a variant's steps over the mean of
stock TRL's, as the median over rounds with its range, and the median of the paired ratios of single steps (which
leaves the steps that log and write out of account). Each round has new trainers, threads and an order rotated by one:
where a trainer's weights lie in memory alone moves its speed by several per cent. `stock TRL again` is the noise.
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from dpo_diag.training import DiagDPOTrainer
from dpo_diag.training.head_probe import HeadProbe

VARIANTS: dict[str, dict[str, Any]] = {
    "stock TRL": {},
    "stock TRL again": {},
    "measured": {},
    "measured, recorder": {"recorder": True},
    "+ greedy_logp": {"recorder": True, "extra_metrics": ("greedy_logp",)},
    "+ top5": {"recorder": True, "extra_metrics": ("top5",)},
}
WARM_UP = 5


class Turnstile:
    """Lets one of several threads through at a time, in a fixed order."""

    def __init__(self, order: list[str]) -> None:
        self._order, self._at, self._changed = order, 0, threading.Condition()

    def wait(self, name: str) -> None:
        """Until it is this one's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._order[self._at % len(self._order)] == name)

    def pass_on(self) -> None:
        """The next one's turn."""
        with self._changed:
            self._at += 1
            self._changed.notify_all()


class Step(TrainerCallback):
    """One turn a step; collects the CPU time of each."""

    def __init__(self, name: str, turnstile: Turnstile) -> None:
        self.name, self.turnstile = name, turnstile
        self.seconds: list[float] = []
        self._began: float | None = None

    def _end(self) -> None:
        if self._began is not None:
            self.seconds.append(time.process_time() - self._began)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end()
        if self._began is not None:
            self.turnstile.pass_on()
            self.turnstile.wait(self.name)
        self._began = time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end()


def model_of(vocabulary: int, hidden: int, layers: int) -> LlamaForCausalLM:
    """A random Llama."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=5 * hidden // 2, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
            pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip


def numbered_pairs(vocabulary: int, n: int, length: int) -> tuple[PreTrainedTokenizerFast, Dataset]:
    """A tokenizer whose words are numbers, and pairs of about `length` words a side behind prompts of as many."""
    words = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    draw = random.Random(0)

    def text() -> str:
        return " ".join(str(draw.randrange(2, vocabulary)) for _ in range(draw.randint(length // 2, length * 3 // 2)))

    rows = [{"prompt": text() + " ", "chosen": text(), "rejected": text()} for _ in range(n)]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"), Dataset.from_list(
        rows
    )


def trainer_of(
    name: str, folder: Path, options: argparse.Namespace, policy: Any, tokenizer: Any, pairs: Dataset
) -> Any:
    """The trainer of one variant."""
    more = dict(VARIANTS[name])
    if more.pop("recorder", False):
        more["recorder"] = folder / "run"
    trainer = (DPOTrainer if name.startswith("stock TRL") else DiagDPOTrainer)(
        model=copy.deepcopy(policy), ref_model=copy.deepcopy(policy), processing_class=tokenizer, train_dataset=pairs,
        args=DPOConfig(
            str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True,
            save_strategy="no", max_steps=options.steps, per_device_train_batch_size=options.batch,
            logging_steps=options.logging_steps, dataloader_pin_memory=False,
        ), **more,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure(options: argparse.Namespace, first: int) -> dict[str, list[float]]:
    """CPU seconds of every step after the first few, by variant; `first` rotates the order of turns."""
    tokenizer, pairs = numbered_pairs(options.vocabulary, 64, options.length)
    policy = model_of(options.vocabulary, options.hidden, options.layers)
    names = list(VARIANTS)
    names = names[first % len(names) :] + names[: first % len(names)]
    turnstile = Turnstile(names)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, trainer: Any) -> None:
            torch.set_num_threads(1)
            step = Step(name, turnstile)
            trainer.add_callback(step)
            turnstile.wait(name)
            trainer.train()
            turnstile.pass_on()
            seconds[name] = step.seconds[WARM_UP:]

        trainers = {
            n: trainer_of(n, Path(folder) / str(i), options, policy, tokenizer, pairs) for i, n in enumerate(names)
        }
        threads = [threading.Thread(target=run, args=item) for item in trainers.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return seconds


def head_prices(vocabulary: int, hidden: int, repeats: int = 40) -> dict[str, float]:
    """Milliseconds of one forward of the fused head over 8 pairs of 40 positions, half of them responses: plain and
    with each probe, taken in turns, the smallest of `repeats` (what the work takes when nothing interferes)."""
    model = model_of(vocabulary, hidden, 1)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    ids = torch.randint(2, vocabulary, (16, 40))
    labels = ids.clone()
    labels[:, :20] = -100
    probes = {"plain": None, "greedy_logp": HeadProbe(False, True), "top5": HeadProbe(True, False)}
    best = dict.fromkeys(probes, float("inf"))
    with torch.no_grad():
        for _ in range(repeats):
            for name, probe in probes.items():
                began = time.process_time()
                if probe is None:
                    model(input_ids=ids, labels=labels, fused_lm_head=True)
                else:
                    with probe.listening(vocabulary):
                        probe.expect(labels)
                        probe.take(model(input_ids=ids, labels=labels, fused_lm_head=True).label_mask)
                best[name] = min(best[name], 1000 * (time.process_time() - began))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=768)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=20, help="mean tokens of a prompt and of a response")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--logging-steps", type=int, default=10)
    parser.add_argument("--head", action="store_true", help="only the extra metrics' price in the head")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for vocabulary in (options.vocabulary, 49_152):
        prices = head_prices(vocabulary, options.hidden, 20 if vocabulary > 10_000 else 100)
        line = ", ".join(f"{k} {v:.2f} ms (x {v / prices['plain']:.3f})" for k, v in prices.items())
        print(f"one forward, vocabulary {vocabulary}: {line}", flush=True)
    if options.head:
        return
    rounds = [measure(options, i) for i in range(options.rounds)]
    print(
        f"vocabulary {options.vocabulary}, hidden {options.hidden}, {options.layers} layers, batch {options.batch}, "
        f"{options.length} + {options.length} tokens, a log every {options.logging_steps} steps, "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    for name in VARIANTS:
        ratios = sorted(statistics.fmean(r[name]) / statistics.fmean(r["stock TRL"]) for r in rounds)
        steps = [s / t for r in rounds for s, t in zip(r[name], r["stock TRL"], strict=True)]
        mean = statistics.fmean(s for r in rounds for s in r[name])
        print(
            f"{name:20s} {1000 * mean:8.2f} ms/step   x {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f})   median step x {statistics.median(steps):.3f}"
        )


if __name__ == "__main__":
    main()
