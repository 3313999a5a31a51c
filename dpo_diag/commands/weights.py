"""`dpo-diag weights A B`: two checkpoints' weights, layer by layer, without running the model."""

from __future__ import annotations

import argparse
import json
import shutil


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="the earlier checkpoint: a folder or .safetensors file, or an adapter")
    parser.add_argument("b", metavar="B", help="the later checkpoint, or an adapter on A")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="weights to list, most changed first (10)")
    ranks = parser.add_mutually_exclusive_group()
    ranks.add_argument("--ranks", action="store_true", default=None, help="effective ranks of all weights, also large")
    ranks.add_argument("--no-ranks", dest="ranks", action="store_false", help="no effective ranks of full weights")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    from dpo_diag.inference.weights import compare_weights
    from dpo_diag.outputs.compare import records, strict
    from dpo_diag.outputs.terminal import table

    change = compare_weights(args.a, args.b, ranks=args.ranks)
    tensors = change.tensors.sort_values(["relative", "change"], ascending=False, na_position="last")
    if args.json:
        document = {
            "a": args.a,
            "b": args.b,
            "layers": records(change.layers),
            "tensors": records(tensors),
            "only_a": change.only_a,
            "only_b": change.only_b,
            "other_shape": change.other_shape,
            "notes": change.notes,
        }
        print(json.dumps(strict(document), ensure_ascii=False, allow_nan=False))
        return 0
    columns = max(80, min(200, shutil.get_terminal_size((120, 24)).columns))
    moved = int((change.tensors["change"] > 0).sum())
    print(f"{moved} of {len(change.tensors)} weights changed")
    for note in change.notes:
        print(f"note: {note}")
    for name, names in (("A", change.only_a), ("B", change.only_b)):
        if names:
            print(f"only in {name}: {len(names)}, e.g. {names[0]}")
    if change.other_shape:
        print(f"other shapes: {len(change.other_shape)}, e.g. {change.other_shape[0]}")
    header = ["layer", "weights", "norm", "change", "relative", "effective rank"]
    columns_shown = ("n", "norm", "change", "relative", "effective_rank")
    rows = [
        ["outside" if r["layer"] < 0 else str(r["layer"]), *(r[c] for c in columns_shown)]
        for r in records(change.layers)
    ]
    print("\nBy layer (relative: norm of the change over norm of A)")
    print("\n".join("  " + line for line in table(rows, header, columns - 2)))
    shown = ["tensor", "shape", "change", "relative", "effective_rank", "max_rank", "top_share"]
    rows = [[r[c] for c in shown] for r in records(tensors.head(args.top))]
    print("\nMost changed (top_share: of the squared change along its first direction)")
    print("\n".join("  " + line for line in table(rows, shown, columns - 2)))
    return 0
