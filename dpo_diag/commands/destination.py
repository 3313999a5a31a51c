"""`dpo-diag explain --destination`: loads the two checkpoints of an explanation and asks where the probability went."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.records import Run


def add_gained(
    document: dict[str, Any], run: Run, args: argparse.Namespace, thresholds: Mapping[str, Any]
) -> dict[str, Any]:
    """The explanation with the section `gained`, and the narrative told anew with it.

    Raises:
        DiagError: a checkpoint that is not found or cannot be loaded.
    """
    from dpo_diag.diagnosis.narrative import narrate
    from dpo_diag.diagnosis.strict_json import plain

    told: dict[str, Any] = {**document, "gained": plain(_gained(document, run, args, thresholds))}
    told["narrative"] = plain(narrate(told, run))
    return told


def _gained(
    document: dict[str, Any], run: Run, args: argparse.Namespace, thresholds: Mapping[str, Any]
) -> dict[str, Any]:
    from dpo_diag.diagnosis.aligned import select
    from dpo_diag.diagnosis.decompose.gained import gained_section, losing_positions
    from dpo_diag.diagnosis.decompose.tokens import token_change
    from dpo_diag.diagnosis.token_sections import NO_TOKENS
    from dpo_diag.thresholds import load_thresholds

    if not document["n_pairs"]:
        return {"not_applicable": "no pair stands at both steps"}
    values = load_thresholds(thresholds)
    selection = select(run, document["from_step"], document["to_step"], document["split"])
    change = token_change(run, selection)
    if change is None or not change.usable.any():
        return dict(NO_TOKENS)
    if not run.has("texts"):
        return {"not_applicable": "the run holds no texts, so no prompt can be given to a model"}
    positions = losing_positions(change, int(values["gained.positions"]))
    if not len(positions):
        return {"not_applicable": "no token lost probability"}

    from dpo_diag.inference.next_tokens import compare_at
    from dpo_diag.models.checkpoints import Loader
    from dpo_diag.models.run_checkpoints import checkpoint_of

    earlier = checkpoint_of(run, document["from_step"], args.checkpoint_from, "--checkpoint-from")
    later = checkpoint_of(run, document["to_step"], args.checkpoint_to, "--checkpoint-to")
    texts = run.read("texts", splits=[document["split"]])
    length, mode = _limits(run)
    found = compare_at(earlier, later, positions, texts, loader=Loader(device=args.device), max_length=length,
                       truncation_mode=mode)  # fmt: skip
    section: dict[str, Any] = {"from_checkpoint": earlier.path, "to_checkpoint": later.path,
                               "left_out": len(positions) - len(found.kept)}  # fmt: skip
    if not found.kept:
        why = "no prompt could be tokenised so that its answer has the recorded tokens"
        return section | {"not_applicable": f"{why}: the checkpoint's tokenizer is another one"}
    kept = positions.loc[found.kept].reset_index(drop=True)
    return section | gained_section(kept, found.before, found.after, found.scores, found.text_of, values)


def _limits(run: Run) -> tuple[int | None, str]:
    """max_length and truncation_mode of the training, where run.json has them."""
    training = run.meta.get("training")
    settings = training if isinstance(training, dict) else {}
    length = settings.get("max_length")
    return (length if isinstance(length, int) else None), str(settings.get("truncation_mode") or "keep_start")


def refuse(args: argparse.Namespace) -> None:
    """Options that need --destination, or that it does not go with.

    Raises:
        DiagError: with usage set.
    """
    given = [n for n in ("checkpoint_from", "checkpoint_to") if getattr(args, n) is not None]
    if given and not args.destination:
        raise DiagError(f"--{given[0].replace('_', '-')} goes with --destination", usage=True)
    if args.destination and args.watch:
        raise DiagError("--destination loads models: it does not go with --watch", usage=True)
