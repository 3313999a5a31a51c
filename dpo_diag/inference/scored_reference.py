"""A reference that was scored before: its rows out of a run folder, where they are of these pairs and tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.models.checkpoints import POLICY, REFERENCE
from dpo_diag.models.tokenizers import tokenizer_fingerprint
from dpo_diag.records import Run, load_run
from dpo_diag.records.schemas import SIDES
from dpo_diag.records.typed_json import to_document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpo_diag.inference.scoring import PairTokens


@dataclass(frozen=True)
class ScoredReference:
    """Rows of pairs/ and tokens/ in the reference's role, without a split, and what run.json says of the model."""

    pairs: pd.DataFrame
    tokens: pd.DataFrame
    described: dict[str, Any]


def reference_rows(
    run_folder: str | os.PathLike[str], encoded: PairTokens, tokenizer: PreTrainedTokenizerBase,
    ids_there: Mapping[str, str] | None = None,
) -> ScoredReference:  # fmt: skip
    """The reference's rows of a run for these pairs; those of the policy where the run scored a single model.

    Args:
        ids_there: pair_id -> the id that the run knows the pair by; None for the same.

    Raises:
        DiagError: the run lacks a pair, was scored under another tokenizer or template, or cut responses elsewhere.
    """
    run = load_run(run_folder)

    def refused(why: str, got: object, expected: object, hint: str) -> DiagError:
        return DiagError(f"the scored reference does not fit: {why}", where=run.path, got=got, expected=expected,
                         hint=hint)  # fmt: skip

    known, own = run.info.tokenizer.fingerprint, tokenizer_fingerprint(tokenizer)
    if known not in (None, own):
        raise refused("another tokenizer or chat template", known, own, "score the reference with this tokenizer")
    role, rows = _one_model(run)
    if ids_there is not None:
        rows["pair_id"] = rows["pair_id"].map({there: here for here, there in ids_there.items()})
    wanted = {pair.pair_id for pair in encoded.pairs}
    # Whole rows before a training's sums.
    rows = rows[rows["pair_id"].isin(wanted)].sort_values("entropy_sum", kind="stable", na_position="last")
    rows = rows.drop_duplicates(["pair_id", "side"]).sort_index()
    if lacking := wanted - set(rows["pair_id"]):
        raise refused(
            "it lacks pairs", f"{len(wanted) - len(lacking)} of {len(wanted)} pairs", "all of them",
            "score the reference on these pairs (dpo-score)",
        )  # fmt: skip
    counts = rows[["n_tokens", "n_truncated"]].astype("Int64").fillna(-1).astype(int).to_numpy().tolist()
    there = dict(zip(zip(rows["pair_id"], rows["side"], strict=True), counts, strict=True))
    for pair in encoded.pairs:
        for side in SIDES:
            here = [len(pair.scored(side)), pair.n_truncated[side]]
            if there[pair.pair_id, side] != here:
                raise refused(
                    f"pair {pair.pair_id}, {side} was cut elsewhere",
                    "{} tokens, {} cut off".format(*there[pair.pair_id, side]), "{} tokens, {} cut off".format(*here),
                    "score it with the same max_length and truncation_mode",
                )  # fmt: skip
    tokens = run.read("tokens", roles=[role], splits=sorted(set(rows["split"].astype(str))))
    if ids_there is not None:
        tokens["pair_id"] = tokens["pair_id"].astype(str).map({there: here for here, there in ids_there.items()})
    tokens = tokens[tokens["pair_id"].isin(wanted)].drop_duplicates(["pair_id", "side", "position"])
    document = to_document(run.info)
    described = document.get("reference" if role == REFERENCE else "model", {})
    kept = {k: described[k] for k in ("name", "revision", "architecture", "dtype", "fingerprint") if k in described}
    for frame in (rows, tokens):
        frame["step"], frame["role"] = 0, REFERENCE
    return ScoredReference(rows, tokens, kept)


def _one_model(run: Run) -> tuple[str, pd.DataFrame]:
    """The rows of the one model that the run can mean, and its role there."""
    rows = run.read("pairs", roles=[REFERENCE])
    if len(rows):
        return REFERENCE, rows
    rows = run.read("pairs", roles=[POLICY])
    steps = sorted(set(rows["step"]))
    if len(steps) != 1:
        raise DiagError(
            "the run does not say which model is the reference", where=run.path,
            got=f"policies of {len(steps)} steps and no reference", expected="rows of role ref, or of one model",
            hint="score the reference: dpo-score checkpoints=ref=MODEL",
        )  # fmt: skip
    return POLICY, rows
