"""`dpo-diag ppl 2.3 --vocab-size 49152`: a loss as perplexity, on the vocabulary's scale."""

from __future__ import annotations

import argparse
import json

from dpo_diag.diagnosis.decompose.loss_level import compare_levels, loss_level
from dpo_diag.diagnosis.strict_json import plain
from dpo_diag.diagnosis.tables import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("loss", type=float, nargs="+", help="cross-entropy in nats per token; several are compared")
    parser.add_argument("--vocab-size", type=int, help="tokens of the vocabulary: gives the uniform guess as scale")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(args: argparse.Namespace) -> int:
    levels = [loss_level(loss, args.vocab_size) for loss in args.loss]
    changes = compare_levels(args.loss)
    if args.json:
        document = levels[0] if len(levels) == 1 else {"levels": levels, "changes": changes}
        print(json.dumps(plain(document), allow_nan=False, ensure_ascii=False))
        return 0
    names = ["loss", "perplexity", "bits_per_token", "uniform_loss", "share_of_uniform"]
    header = ["loss", "perplexity", "bits per token", "uniform loss", "share of uniform"]
    print(table(header, [[level[n] for n in names] for level in levels]))
    for level in levels:
        print(f"\nloss {level['loss']:g} means:")
        print("\n".join(f"  {text}" for text in level["means"]))
    for change in changes:
        print(f"\n{change['from']:g} → {change['to']:g} is perplexity {change['ppl_from']:.4g} → {change['ppl_to']:.4g}"
              f" (times {change['ppl_ratio']:.3g})")  # fmt: skip
    print("\nand it does not mean:")
    print("\n".join(f"  {text}" for text in levels[0]["does_not_mean"]))
    return 0
