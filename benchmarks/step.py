"""What an optimizer step costs: stock TRL, DiagDPOTrainer, and DiagDPOTrainer with the shared prompt computed once.

    python benchmarks/step.py [--json] [--quick] [--case smollm2] [--rounds 3]

Cases: `smollm2`, a random model of SmolLM2-135M's shape with LoRA r 64, prompts as long as responses; `vocabulary`,
49,152 tokens and hidden size 128, all weights trained; `diagnostics`, a tiny model with each measurement on its own,
without the shared prompt; `guards`, the same model with all live guards and with none; `epsilon`, the model of
`vocabulary` with DPO's loss and with epsilon-DPO's, the shared prompt computed once.

Every variant trains with its own trainer in a thread of its own, and a turnstile lets exactly one of them take exactly
one step at a time: first stock TRL its step 1, then each variant its step 1, and so on, on the same pairs and weights.
What the machine does besides slows down neighbouring steps alike. A step's time is the process's CPU time (one thread)
from its beginning to the next one's, logging and writing included. Printed: CPU seconds of a variant's median step, and
the mean of its steps over the mean of the first one's, as the median over rounds with its range. Each round has new
trainers, threads and an order rotated by one: where a trainer's weights lie in memory alone moves its speed by several
per cent. `... again` is the noise. Peaks of memory are those of a process of its own for each variant.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import random
import resource
import statistics
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from dpo_diag.training import DiagDPOTrainer

MAIN: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "ours": {"recorder": True},
    "shared_prefix": {"recorder": True, "shared_prefix": "on"},
}
"""Variant -> keywords of DiagDPOTrainer; None: TRL's own trainer."""
EACH: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "stock again": None,
    "measured": {},
    "recorded": {"recorder": True},
    "+ greedy_logp": {"recorder": True, "extra_metrics": ("greedy_logp",)},
    "+ top5": {"recorder": True, "extra_metrics": ("top5",)},
}
GUARDS: dict[str, dict[str, Any] | None] = {
    "no guards": {"recorder": True, "guards": False},
    "again": {"recorder": True, "guards": False},
    "all guards": {"recorder": True},
}
EPSILON: dict[str, dict[str, Any] | None] = {
    "sigmoid": {"recorder": True, "shared_prefix": "on"},
    "again": {"recorder": True, "shared_prefix": "on"},
    "epsilon_dpo": {"recorder": True, "shared_prefix": "on", "loss_type": "epsilon_dpo"},
}


@dataclass(frozen=True)
class Case:
    """A model's shape and what a step of it holds; lengths are means, in tokens."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    lora: int
    prompt: int
    response: int
    batch: int
    steps: int
    warm_up: int
    rounds: int
    variants: str = "main"

    @property
    def options(self) -> dict[str, dict[str, Any] | None]:
        return {"main": MAIN, "each": EACH, "guards": GUARDS, "epsilon": EPSILON}[self.variants]


CASES = {
    "smollm2": Case(49_152, 576, 1536, 30, 9, 3, 64, 96, 96, 2, 3, 1, 3),
    "vocabulary": Case(49_152, 128, 320, 2, 4, 4, 0, 40, 40, 8, 8, 2, 3),
    "diagnostics": Case(768, 128, 320, 2, 4, 4, 0, 20, 20, 8, 45, 5, 6, "each"),
    "guards": Case(768, 128, 320, 2, 4, 4, 0, 20, 20, 8, 60, 25, 6, "guards"),
    "epsilon": Case(49_152, 128, 320, 2, 4, 4, 0, 40, 40, 8, 8, 2, 3, "epsilon"),
}
QUICK = {
    "smollm2": {"layers": 8, "prompt": 48, "response": 48, "batch": 1, "steps": 3, "rounds": 1},
    "vocabulary": {"batch": 2, "steps": 4, "warm_up": 1, "rounds": 1},
    "diagnostics": {"steps": 12, "rounds": 1},
    "guards": {"steps": 12, "rounds": 1},
    "epsilon": {"batch": 2, "steps": 4, "warm_up": 1, "rounds": 1},
}


OF_GUARDS: list[float] = []
"""CPU seconds of each call into the guards: two a step, one for its batch and one that judges it."""


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


def model_of(case: Case) -> LlamaForCausalLM:
    """A random Llama."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=case.vocabulary, hidden_size=case.hidden, intermediate_size=case.intermediate,
            num_hidden_layers=case.layers, num_attention_heads=case.heads, num_key_value_heads=case.kv_heads,
            max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip


def numbered_pairs(case: Case, n: int) -> tuple[PreTrainedTokenizerFast, Dataset]:
    """A tokenizer whose words are numbers, and pairs whose lengths are half to one and a half times the case's."""
    words = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, case.vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    draw = random.Random(0)

    def text(length: int) -> str:
        n_words = draw.randint(length // 2, length * 3 // 2)
        return " ".join(str(draw.randrange(2, case.vocabulary)) for _ in range(n_words))

    rows = [
        {"prompt": text(case.prompt) + " ", "chosen": text(case.response), "rejected": text(case.response)}
        for _ in range(n)
    ]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"), Dataset.from_list(
        rows
    )


def trainer_of(name: str, folder: Path, case: Case, policy: Any, tokenizer: Any, pairs: Dataset) -> Any:
    """The trainer of one variant."""
    options = case.options[name]
    more = dict(options or {})
    guarded, loss_type = more.pop("guards", True), more.pop("loss_type", "sigmoid")
    if more.pop("recorder", False):
        more["recorder"] = folder / "run"
    if case.lora:
        more["peft_config"] = LoraConfig(r=case.lora, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = (DPOTrainer if options is None else DiagDPOTrainer)(
        model=copy.deepcopy(policy), ref_model=None if case.lora else copy.deepcopy(policy), processing_class=tokenizer,
        train_dataset=pairs, args=DPOConfig(
            str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True,
            save_strategy="no", max_steps=case.steps + case.warm_up, per_device_train_batch_size=case.batch,
            dataloader_pin_memory=False, max_length=None, loss_type=loss_type,
        ), **more,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    if not guarded:
        trainer.before_update = trainer.monitor.guards.batch = lambda *_: None
    elif case.variants == "guards":
        trainer.before_update = _timed(trainer.before_update)
        trainer.monitor.guards.batch = _timed(trainer.monitor.guards.batch)
    return trainer


def _timed(call: Any) -> Any:
    """The same call; its CPU seconds go to `OF_GUARDS`."""

    def timed(*args: Any) -> Any:
        began = time.process_time()
        try:
            return call(*args)
        finally:
            OF_GUARDS.append(time.process_time() - began)

    return timed


def one_round(case: Case, first: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds of every step after the first few, by variant, and what the proof of packed rows found; `first`
    rotates the order of turns."""
    tokenizer, pairs = numbered_pairs(case, 8 * case.batch)
    policy = model_of(case)
    names = list(case.options)
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
            seconds[name] = step.seconds[case.warm_up :]

        trainers = {
            n: trainer_of(n, Path(folder) / str(i), case, policy, tokenizer, pairs) for i, n in enumerate(names)
        }
        threads = [threading.Thread(target=run, args=item) for item in trainers.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    info = trainers["shared_prefix"].shared_prefix if "shared_prefix" in trainers else None
    diffs = {} if info is None else {"max_loss_diff": info.max_loss_diff, "max_grad_diff": info.max_grad_diff}
    return seconds, diffs


def measured(case: Case) -> dict[str, Any]:
    """Per variant {"cpu_s", "of_stock": {"median", "min", "max"}}, and the differences of the proof."""
    rounds = [one_round(case, i) for i in range(case.rounds)]
    found: dict[str, Any] = {"variants": {}}
    first = next(iter(case.options))
    for name in case.options:
        ratios = [statistics.fmean(s[name]) / statistics.fmean(s[first]) for s, _ in rounds]
        found["variants"][name] = {
            "cpu_s": statistics.median(t for s, _ in rounds for t in s[name]),
            "of_stock": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        }
    if OF_GUARDS:
        found["guards_ms"] = 1000 * sum(OF_GUARDS) / (len(OF_GUARDS) / 2)
    for key in rounds[0][1]:
        found[key] = max(diffs[key] for _, diffs in rounds)
    return found


def peak_of(case: Case, name: str) -> int:
    """Bytes of the largest resident set of a process that takes two steps with one variant."""

    def steps(connection: Any) -> None:
        torch.set_num_threads(1)
        tokenizer, pairs = numbered_pairs(case, 8 * case.batch)
        with tempfile.TemporaryDirectory() as folder:
            few = replace(case, steps=1, warm_up=1)
            trainer_of(name, Path(folder), few, model_of(case), tokenizer, pairs).train()
        connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=steps, args=(theirs,))
    process.start()
    peak = int(ours.recv())
    process.join()
    return peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="under a minute: one round, shorter, 8 of 30 layers")
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    cases = {name: CASES[name] for name in options.case or CASES}
    for name, case in cases.items():
        case = replace(case, **QUICK[name]) if options.quick else case
        cases[name] = replace(case, rounds=options.rounds) if options.rounds else case
    # Peaks first: a forked process starts with what this one holds.
    peaks = {name: {v: peak_of(case, v) for v in MAIN} for name, case in cases.items() if case.variants == "main"}
    for name, case in cases.items():
        found[name] = {"case": vars(case), **measured(case)}
        if name in peaks:
            found[name]["peak_rss"] = peaks[name]
        if not options.json:
            print_case(name, found[name])
    if options.json:
        print(json.dumps(flat(found), indent=2))


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """Of the first case with a shared prompt the figures at the top, everything by case below."""
    top: dict[str, Any] = {}
    for part in found.values():
        if "peak_rss" in part:
            top = {f"{name}_cpu_s": part["variants"][name]["cpu_s"] for name in MAIN}
            top |= {key: part[key] for key in ("peak_rss", "max_loss_diff", "max_grad_diff")}
            break
    return {**top, "cases": found}


def print_case(name: str, found: dict[str, Any]) -> None:
    """A line a variant."""
    case = found["case"]
    print(
        "{name}: vocabulary {vocabulary}, hidden {hidden}, {layers} layers, LoRA {lora}, {prompt} + {response} tokens, "
        "batch {batch}, {rounds} rounds of {steps} steps".format(name=name, **case)
    )
    for variant, values in found["variants"].items():
        ratio = values["of_stock"]
        peak = found.get("peak_rss", {}).get(variant)
        print(
            f"  {variant:14s} {values['cpu_s']:8.3f} CPU s a step   x {ratio['median']:.3f} "
            f"({ratio['min']:.3f} to {ratio['max']:.3f})" + ("" if peak is None else f"   peak {peak / 2**20:,.0f} MiB")
        )
    if "guards_ms" in found:
        print(f"  the guards' own calls take {found['guards_ms']:.2f} CPU ms a step")
    if "max_loss_diff" in found:
        print(
            f"  loss differs by {found['max_loss_diff']:.1e}, gradient by {found['max_grad_diff']:.1e} of its largest"
        )


if __name__ == "__main__":
    main()
