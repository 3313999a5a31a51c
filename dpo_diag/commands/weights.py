"""`dpo-diag weights A B`: which layers changed between two checkpoints, and along how many directions."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.next_steps import after_weights
from dpo_diag.text import records, table, terminal_width, to_json


def weights(
    a: str,
    b: str,
    /,
    *,
    top: int = 10,
    ranks: Annotated[bool | None, Parameter(negative="--no-ranks")] = None,
    json: bool = False,
) -> int:
    """Compare two checkpoints' weights layer by layer.

    Args:
        a: the earlier checkpoint: a folder or .safetensors file, or an adapter.
        b: the later checkpoint, or an adapter on A.
        top: weights to list, most changed first.
        ranks: effective ranks of all weights, also large ones; --no-ranks: of none (default: of the small ones).
        json: one JSON document on standard output.
    """
    from dpo_diag.models.weight_files import Weights

    for path in (a, b):
        Weights(path)  # what is mistyped is answered before anything heavy is imported
    from dpo_diag.inference.weights import compare_weights

    change = compare_weights(a, b, ranks=ranks)
    tensors = change.tensors.sort_values(["relative", "change"], ascending=False, na_position="last")
    if json:
        print(to_json({"a": a, "b": b, "layers": change.layers, "tensors": tensors, "only_a": change.only_a,
                       "only_b": change.only_b, "other_shape": change.other_shape, "notes": change.notes,
                       "next": after_weights(a, b)}))  # fmt: skip
        return 0
    print(f"{int((change.tensors['change'] > 0).sum())} of {len(change.tensors)} weights changed")
    for note in change.notes:
        print(f"note: {note}")
    for name, names in (
        ("only in A", change.only_a),
        ("only in B", change.only_b),
        ("other shapes", change.other_shape),
    ):
        if names:
            print(f"{name}: {len(names)}, e.g. {names[0]}")
    columns = ["n", "norm", "change", "relative", "effective_rank"]
    rows: list[list[Any]] = [
        ["outside" if r["layer"] < 0 else str(r["layer"]), *(r[c] for c in columns)] for r in records(change.layers)
    ]
    width = terminal_width(unknown=120, least=80)
    print("\nBy layer (relative: norm of the change over norm of A)")
    print(table(["layer", "weights", "norm", "change", "relative", "effective rank"], rows, width))
    shown = ["tensor", "shape", "change", "relative", "effective_rank", "max_rank", "top_share"]
    print("\nMost changed (top_share: of the squared change along its first direction)")
    print(table(shown, [[r[c] for c in shown] for r in records(tensors.head(top))], width))
    say_next(after_weights(a, b))
    return 0
