"""`dpo-diag explain --destination`: loads the two checkpoints of an explanation and asks where the probability went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.records import Run


def add_gained(
    document: dict[str, Any],
    run: Run,
    thresholds: Mapping[str, Any],
    checkpoint_from: str | None = None,
    checkpoint_to: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """The explanation with the section `gained`, and its narrative with what that section says.

    Args:
        checkpoint_from, checkpoint_to: the two models; None for the run's own checkpoints of the two steps.

    Raises:
        DiagError: a checkpoint that is not found or cannot be loaded.
    """
    from dpo_diag.diagnosis.narrative import narrate
    from dpo_diag.text import plain

    gained = _gained(document, run, thresholds, (checkpoint_from, checkpoint_to), device)
    extended: dict[str, Any] = {**document, "gained": plain(gained)}
    extended["narrative"] = plain(narrate(extended))
    return extended


def _gained(
    document: dict[str, Any],
    run: Run,
    thresholds: Mapping[str, Any],
    checkpoints: tuple[str | None, str | None],
    device: str,
) -> dict[str, Any]:
    from dpo_diag.diagnosis.aligned import align
    from dpo_diag.diagnosis.decompose.gained import gained_section, losing_positions
    from dpo_diag.diagnosis.decompose.tokens import NO_TOKENS
    from dpo_diag.thresholds import load_thresholds

    if not document["n_pairs"]:
        return {"not_applicable": "no pair was measured at both steps"}
    values = load_thresholds(thresholds)
    aligned = align(run, document["from_step"], document["to_step"], document["split"])
    change = aligned.tokens
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

    earlier = checkpoint_of(run, document["from_step"], checkpoints[0], "--checkpoint-from")
    later = checkpoint_of(run, document["to_step"], checkpoints[1], "--checkpoint-to")
    texts = run.read("texts", splits=[document["split"]])
    training = run.info.training
    asked = compare_at(earlier, later, positions, texts, loader=Loader(device=device), max_length=training.max_length,
                       truncation_mode=training.truncation_mode or "keep_start")  # fmt: skip
    section: dict[str, Any] = {"from_checkpoint": earlier.path, "to_checkpoint": later.path,
                               "left_out": len(positions) - len(asked.kept)}  # fmt: skip
    if not asked.kept:
        why = "no prompt could be tokenised so that its answer has the recorded tokens"
        return section | {"not_applicable": f"{why}: the checkpoint's tokenizer is another one"}
    kept = positions.loc[asked.kept].reset_index(drop=True)
    return section | gained_section(kept, asked.before, asked.after, asked.scores, asked.text_of, values)
