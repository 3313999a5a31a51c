"""DVG014: one prompt preferred both ways, the same pair twice, chosen equal to rejected, held-out pairs in training."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import LISTED, Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.records import Run
from dpo_diag.text import plural
from dpo_diag.thresholds import Thresholds

TEXT = ["prompt", "chosen", "rejected"]
PAIR = [*TEXT, "beside"]
"""What makes two pairs one: the texts, and the hash of what else the model sees (tools, images)."""


def faulty_pairs(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Compares the texts of the pairs, up to spaces and case, and the pair_ids of training and held-out sets."""
    texts = ctx.run.texts_of_splits
    if texts.empty and ctx.pairs.rows["split"].nunique() < 2:
        raise Missing("neither texts nor the pairs of two splits are recorded")
    evidence: dict[str, Any] = {}
    reasons: list[str] = []
    leaked = _in_both(ctx.run, ctx.pairs.rows, ["pair_id"])
    if not texts.empty:
        clean = texts[["pair_id", "split"]].assign(beside=texts["beside"].fillna(""))
        clean[TEXT] = texts[TEXT].fillna("").apply(lambda column: column.str.lower().str.split().str.join(" "))
        _compare(clean.drop_duplicates("pair_id"), t, evidence, reasons)
        same_text = _in_both(ctx.run, clean, PAIR)
        evidence["leaked_from_texts"] = same_text[:LISTED]
        leaked = sorted({*leaked, *same_text})
    evidence["train_pairs_held_out"] = leaked[:LISTED]
    if leaked:
        reasons.append(f"{plural(len(leaked), 'held-out pair is', 'held-out pairs are')} in the training data too")
    if reasons:
        return speaks("; ".join(reasons), **evidence)
    return silent("no contradictory, repeated or leaked pair", **evidence)


def _compare(pairs: pd.DataFrame, t: Thresholds, evidence: dict[str, Any], reasons: list[str]) -> None:
    """Contradictions and repeats among pairs of different pair_id."""
    equal = pairs[(pairs["chosen"] == pairs["rejected"]) & (pairs["chosen"] != "")]
    swapped = pairs.rename(columns={"chosen": "rejected", "rejected": "chosen"})
    flipped = pairs.merge(swapped, on=PAIR, suffixes=("", "_other"))
    flipped = flipped[flipped["pair_id"] != flipped["pair_id_other"]]
    repeated = pairs[pairs.duplicated(PAIR, keep=False)]
    liked, disliked = (zip(pairs["prompt"], pairs["beside"], pairs[side], strict=True) for side in TEXT[1:])
    chosen = set(liked)
    both = sum(answer in chosen for answer in disliked)
    evidence |= {
        "preferred_both_ways": list(flipped["pair_id"][:LISTED]), "duplicates": list(repeated["pair_id"][:LISTED]),
        "chosen_equals_rejected": list(equal["pair_id"][:LISTED]), "answers_both_chosen_and_rejected": both,
    }  # fmt: skip
    if len(flipped):
        reasons.append(f"{plural(len(flipped), 'pair is', 'pairs are')} preferred both ways")
    elif both:
        reasons.append(
            f"{plural(both, 'answer is', 'answers are')} chosen in one pair and rejected in another of the same prompt"
        )
    if len(equal):
        reasons.append(f"{plural(len(equal), 'pair has', 'pairs have')} equal chosen and rejected")
    if len(repeated) > t["duplicates_max_share"] * len(pairs):
        reasons.append(f"{plural(len(repeated), 'pair repeats', 'pairs repeat')} another up to spaces and case")


def _in_both(run: Run, pairs: pd.DataFrame, key: list[str]) -> list[str]:
    """pair_ids of held-out pairs that are also training pairs by `key`.

    A set that the caller drew from training is exempt. One that is a probe of it only because its pairs turned out to
    be training pairs is not: nobody said so, and a held-out set that leaked looks the same.
    """
    once = pairs[sorted({"split", "pair_id", *key})].drop_duplicates()
    roles = once["split"].map(run.role)
    unsaid = once["split"].isin([name for name, split in run.info.splits.items() if split.role_from == "pairs"])
    training, held_out = once[roles == "train"], once[(roles != "train") & ((roles != "train_probe") | unsaid)]
    return sorted(set(held_out.merge(training[key].drop_duplicates(), on=key)["pair_id"]))


def _texts(*rows: tuple[str, str, str]) -> dict[str, list[dict[str, str]]]:
    return {"texts": [{"split": "eval", "pair_id": f"t{i}", **dict(zip(TEXT, r, strict=True))}
                      for i, r in enumerate(rows)]}  # fmt: skip


_PAIRS = {0: ([-10.0] * 4, -10.0), 5: ([-9.0] * 4, -12.0)}

register(
    Check(
        code="DVG014",
        title="contradictory, repeated or leaked pairs",
        says="A prompt is preferred both ways, chosen equals rejected, pairs repeat up to spaces and case, or held-out "
        "pairs are also training pairs.",
        why="Contradictory pairs pull in both directions and leave the loss above 0 for ever; equal sides teach "
        "nothing; repeats weigh double; a leak makes the held-out loss as good as the training loss.",
        needs="texts of the pairs, or pairs of two splits",
        severity="warning",
        evidence={
            "preferred_both_ways": "pair_ids whose chosen is another pair's rejected and the reverse",
            "duplicates": "pair_ids with the text of another pair",
            "chosen_equals_rejected": "pair_ids with equal sides",
            "answers_both_chosen_and_rejected": "answers chosen in one pair and rejected in another of the same prompt",
            "leaked_from_texts": "held-out pair_ids with the text of a training pair",
            "train_pairs_held_out": "held-out pair_ids that are training pairs by id or text",
        },
        false_alarms=(
            "rankings written out as pairs: the middle answer is chosen once and rejected once",
            "a set drawn from training on purpose, whose role in run.json is not train_probe",
        ),
        bad=Example(
            "The prompt p prefers yes over no, and no over yes.",
            pairs=_PAIRS,
            tables=_texts(("p", "yes", "no"), ("p", "No ", "yes"), ("q", "a", "b")),
        ),
        good=Example(
            "Three prompts, three preferences.",
            pairs=_PAIRS,
            tables=_texts(("p", "yes", "no"), ("q", "a", "b"), ("r", "c", "d")),
        ),
        try_next=("drop or settle contradictory pairs, deduplicate, split by prompt before training",),
        sources=(),
        since="0.1.0",
        function=faulty_pairs,
        reads=("duplicates_max_share",),
    )
)
