"""What scoring costs: TRL's loop over reference log-probs against `dpo-score`, on the same pairs and weights, in turns.

    python benchmarks/score.py [--json] [--quick] [--pairs FILE] [--model FOLDER] [--rounds 3]

TRL: `DPOTrainer.compute_ref_log_probs` on the batches of its own precomputing (8 pairs, padded, as they come). Ours:
`score_pairs`, which also gives entropy, greedy log-prob and ranks, and makes the rows of the records. Both with one
thread; CPU seconds, as the median over rounds with its range. Tokenising and loading are in neither.

`gemm_share` is the time of the bare matrix products of our forwards (every linear layer at our rows' lengths, the head
at the response positions, attention's two products, of which the causal half counts) over our time: 1 would be a
machine that does nothing else. Before the first batch one pair is also scored the plain way, in proof that rows are
right; that is once for all checkpoints of a set and stands apart (`proof_cpu_s`). Peaks of memory are above what lay
there before (the models).

The model is SmolLM2-135M where `dpo-diag fetch smollm2` brought it, else a random one of its shape. Without --pairs the
tokens are drawn at random, in lengths as those of chat pairs: prompts with a median of 140 tokens, answers of 240.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from dpo_diag.data.tokens import with_ids
from dpo_diag.errors import DiagError
from dpo_diag.inference.scoring import PairTokens, score_pairs
from dpo_diag.models.loading import load_model
from dpo_diag.models.packed.rows import ROW_TOKENS, Row, Span, pack
from dpo_diag.models.smollm2 import smollm2_folder
from dpo_diag.models.tokenizers import load_tokenizer

MAX_LENGTH = 1024
VOCABULARY = 49152


def smollm2_like() -> LlamaForCausalLM:
    """A random model of SmolLM2-135M's shape."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
            num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
            pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip


def numbered_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are numbers."""
    words = {"<pad>": 0, "<eos>": 1} | {str(i): i for i in range(2, VOCABULARY)}
    raw = Tokenizer(WordLevel(words, unk_token="2"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def drawn_pairs(n: int, scale: float) -> list[dict[str, str]]:
    """Pairs of random words; `scale` shortens all of them."""
    draw = np.random.default_rng(0)

    def text(median: float, spread: float, most: int) -> str:
        length = int(np.clip(scale * draw.lognormal(np.log(median), spread), 2, scale * most))
        return " ".join(map(str, draw.integers(2, VOCABULARY, length)))

    return [
        {"prompt": text(140, 0.9, 500) + " ", "chosen": text(240, 0.8, 520), "rejected": text(240, 0.8, 520)}
        for _ in range(n)
    ]


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it gives."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def peak_of(work: Callable[[], Any]) -> int | None:
    """Bytes by which a call's resident memory rose at its highest; None where the system does not tell (not Linux)."""
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before does not hide what is asked for now
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
        before = _status("VmRSS")
        work()
        return _status("VmHWM") - before
    except OSError:
        return None


class Trl:
    """TRL's own loop."""

    def __init__(self, model: Any, tokenizer: Any, rows: list[dict[str, Any]], batch: int, folder: str) -> None:
        arguments = DPOConfig(
            folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True,
            save_strategy="no", max_steps=1, per_device_train_batch_size=batch, max_length=MAX_LENGTH,
            dataloader_pin_memory=False,
        )  # fmt: skip
        columns = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]
        self.trainer = DPOTrainer(
            model=model, ref_model=copy.deepcopy(model), args=arguments, processing_class=tokenizer,
            train_dataset=Dataset.from_list(columns),
        )  # fmt: skip
        data = self.trainer.train_dataset
        self.batches = [
            self.trainer.data_collator([data[j] for j in range(i, min(i + batch, len(data)))])
            for i in range(0, len(data), batch)
        ]

    def sums(self) -> torch.Tensor:
        """(pairs, 2): log-prob sums of chosen and rejected."""
        self.trainer.ref_model.eval()
        parts = [self.trainer.compute_ref_log_probs(self.trainer.ref_model, batch) for batch in self.batches]
        return torch.cat([torch.stack(sides, dim=1) for sides in parts])


class Products:
    """The matrix products of our forwards and nothing else."""

    def __init__(self, model: Any, rows: list[Row]) -> None:
        self.head = model.get_output_embeddings()
        self.linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not self.head]
        config = model.config
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.width = config.hidden_size // self.heads
        self.rows = rows

    def run(self) -> float:
        """CPU seconds of one pass over all rows."""
        total = 0.0
        inputs: dict[tuple[int, int], torch.Tensor] = {}
        with torch.no_grad():
            for row in self.rows:
                needed = {(len(row.ids), m.in_features) for m in self.linear} | {(len(row.read), self.head.in_features)}
                for shape in needed - inputs.keys():
                    inputs[shape] = torch.randn(shape)
                total += cpu_seconds(lambda row=row: self._row(row, inputs))[0]
                total += self._attention(row)
        return total

    def _row(self, row: Row, inputs: dict[tuple[int, int], torch.Tensor]) -> None:
        for module in self.linear:
            torch.mm(inputs[len(row.ids), module.in_features], module.weight.t())
        torch.mm(inputs[len(row.read), self.head.in_features], self.head.weight.t())

    def _attention(self, row: Row) -> float:
        total = 0.0
        for segment in row.segments:
            for i, n in enumerate(segment.responses):
                # The prompt and its first response are one causal square; a further response sees the prompt whole.
                queries, before = (segment.prompt + n, 0) if i == 0 else (n, segment.prompt)
                query = torch.randn(self.heads, queries, self.width)
                key = torch.randn(self.heads, before + queries, self.width)
                took, _ = cpu_seconds(lambda q=query, k=key: torch.bmm(torch.bmm(q, k.transpose(1, 2)), k))
                total += took * (before + queries / 2) / (before + queries)
        return total * self.layers


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers that --json prints."""
    folder = options.model
    if folder is None:
        with contextlib.suppress(DiagError):
            folder = str(smollm2_folder())
    model = load_model(folder, dtype=torch.float32) if folder else smollm2_like()
    model.eval()
    tokenizer = load_tokenizer(folder)[0] if folder else numbered_tokenizer()
    if options.pairs:
        from dpo_diag.config import DataConfig
        from dpo_diag.data.source import load_data

        source = load_data(DataConfig(kind="jsonl", path=options.pairs, eval_share=0.0), seed=0)
        rows = (source.train + source.held_out)[: options.n]
    elif folder:
        raise SystemExit("name --pairs for a model with a tokenizer of its own")
    else:
        rows = drawn_pairs(options.n, 0.35 if options.quick else 1.0)
    encoded = PairTokens.of(rows, tokenizer, MAX_LENGTH)
    kept = {pair.pair_id for pair in encoded.pairs}
    rows = [row for row in with_ids(rows) if row["pair_id"] in kept]
    spans = [Span(pair.prompt[side], pair.response[side]) for pair in encoded.pairs for side in ("chosen", "rejected")]
    laid = pack(spans, options.row_tokens)
    products = Products(model, laid)
    own = copy.deepcopy(model)
    times: dict[str, list[float]] = {"trl": [], "ours": [], "products": []}
    with tempfile.TemporaryDirectory() as run:
        trl = Trl(model, tokenizer, rows, options.batch, run)

        def score(shared_prefix: Any) -> Any:
            return score_pairs(
                own, encoded, step=0, shared_prefix=shared_prefix, row_tokens=options.row_tokens, progress=False
            )

        proved: list[Any] = []
        with_proof, _ = cpu_seconds(lambda: proved.append(score("on").proved))
        for _ in range(options.rounds):
            took, theirs = cpu_seconds(trl.sums)
            times["trl"].append(took)
            took, ours = cpu_seconds(lambda: score(proved[0]))
            times["ours"].append(took)
            times["products"].append(products.run())
        peaks = {"ours": peak_of(lambda: score(proved[0])), "trl": peak_of(trl.sums)} if not options.quick else {}
    sums = ours.pairs["sum_logp"].to_numpy().reshape(-1, 2)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "trl_cpu_s": median["trl"],
        "ours_cpu_s": median["ours"],
        "speedup": median["trl"] / median["ours"],
        "gemm_share": median["products"] / median["ours"],
        "proof_cpu_s": max(0.0, with_proof - median["ours"]),
        "max_diff": float(np.abs(theirs.double().numpy() - sums).max()),
        "pairs": len(encoded.pairs),
        "tokens": sum(len(row.ids) for row in laid),
        "scored_tokens": sum(len(row.read) for row in laid),
        "padded_tokens_trl": sum(batch["input_ids"].numel() for batch in trl.batches),
        "rounds": options.rounds,
        "range": {name: [min(values), max(values)] for name, values in times.items()},
        "speedup_range": _range(t / o for t, o in zip(times["trl"], times["ours"], strict=True)),
        "model": folder or "random, of SmolLM2-135M's shape",
        "row_tokens": options.row_tokens,
        "peak_rss": peaks,
    }


def _range(values: Any) -> list[float]:
    ordered = sorted(values)
    return [ordered[0], ordered[-1]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter pairs: under a minute")
    parser.add_argument("--pairs", help="a file of preference pairs")
    parser.add_argument("--model", help="folder or hub id; default SmolLM2-135M, or a random model of its shape")
    parser.add_argument("--n", type=int, help="pairs (default 12: about ten minutes)")
    parser.add_argument("--batch", type=int, default=8, help="pairs in a batch of TRL's; 8 is its default")
    parser.add_argument("--row-tokens", type=int, default=ROW_TOKENS)
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    options.n = options.n or (6 if options.quick else 12)
    options.rounds = options.rounds or (2 if options.quick else 3)
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = measure(options)
    if options.json:
        print(json.dumps(found))
        return
    low, high = found["speedup_range"]
    print(
        f"{found['pairs']} pairs, {found['tokens']} tokens in our rows, {found['padded_tokens_trl']} in TRL's batches, "
        f"{found['scored_tokens']} scored; {found['model']}\n"
        f"TRL {found['trl_cpu_s']:.2f} CPU s, ours {found['ours_cpu_s']:.2f}: x {found['speedup']:.2f} "
        f"({low:.2f} to {high:.2f}); the proof, once a set, {found['proof_cpu_s']:.2f}\n"
        f"bare matrix products: {found['gemm_share']:.2f} of ours; largest difference of a sum "
        f"{found['max_diff']:.1e} nats"
    )
    if all(found["peak_rss"].values()):
        peaks = ", ".join(f"{name} {value / 2**20:.0f} MiB" for name, value in found["peak_rss"].items())
        print(f"peak memory above the models: {peaks}")


if __name__ == "__main__":
    main()
