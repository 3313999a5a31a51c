"""DVG029: perplexity ranks the rejected answers above the chosen ones: no label may be filtered or swapped by it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import SOUND, Advice, has
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.pair_rows import REFERENCE
from dpo_diag.records.metrics import ce
from dpo_diag.stats import FloatArray, proportion
from dpo_diag.text import number, percent
from dpo_diag.thresholds import Thresholds


def perplexity_order(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Looks at the reference, or where it is not recorded at the first step: before training taught an order."""
    steps = ctx.pairs.steps
    first = ctx.pairs.at(steps[0])
    referenced = ctx.pairs.has_reference(first)
    sums = [first[f"{side}_ref" if referenced else f"{side}_sum_logp"].to_numpy() for side in ("chosen", "rejected")]
    counts = [first[f"{side}_n_tokens"].to_numpy(dtype=np.float64) for side in ("chosen", "rejected")]
    known = np.isfinite(sums).all(axis=0) & (np.nan_to_num(counts) > 0).all(axis=0)
    if known.sum() < t["ppl_order_min_pairs"]:
        raise Missing(f"{int(known.sum())} pairs with sums and lengths: too few to say how perplexity orders them")
    chosen, rejected = (ce(s[known], n[known]) for s, n in zip(sums, counts, strict=True))
    share = proportion(float((rejected < chosen).sum()), int(known.sum()), t["confidence"])
    under = "the reference" if referenced or steps[0] == REFERENCE else f"step {steps[0]}"
    evidence: dict[str, Any] = {"share_rejected_first": share, "auc": detector_auc(rejected - chosen), "under": under}
    last = int(steps[-1])
    margin = _margin(ctx, last)
    if margin is not None:
        evidence |= {"auc_of_margin": detector_auc(margin), "step": last, "margin_is_better": False}
        evidence["margin_is_better"] = evidence["auc_of_margin"] > max(0.5, evidence["auc"])
    counted = f"in {percent(share.value)} of {share.n} pairs"
    if share.value < t["ppl_order_min_share"]:
        return silent(f"under {under} perplexity ranks rejected above chosen {counted}", **evidence)
    if share.low <= 0.5:
        return cannot_tell(f"under {under} perplexity ranks rejected above chosen {counted}: by chance", **evidence)
    return speaks(
        f"under {under} perplexity ranks rejected above chosen {counted}: it would find a wrong label with an AUC of "
        f"{number(evidence['auc'], 3)} (chance is 0.5), so filtering or relabelling by it takes right labels for wrong",
        **evidence,
    )


def detector_auc(gap: FloatArray) -> float:
    """How well `gap` (higher: the label is more plausible) tells labels that are right from labels swapped by mistake.

    A swap negates a pair's gap, so the labels need not be known to be wrong: this is the probability that a right pair
    i has a higher gap than a swapped pair j, P(gap_i > -gap_j), i != j, ties half. NaN below two pairs.

    Hand case: gaps 2, 1, -1.5: of the pairs of sums 3, 0.5, -0.5 two are positive: 2/3.
    """
    n = gap.size
    if n < 2:
        return float("nan")
    ordered = np.sort(gap)
    above = n - np.searchsorted(ordered, -gap, side="right")
    level = np.searchsorted(ordered, -gap, side="right") - np.searchsorted(ordered, -gap, side="left")
    # Each pair was compared with itself, too: 2 gap > 0.
    itself = float((gap > 0).sum() + 0.5 * (gap == 0).sum())
    return float((above.sum() + 0.5 * level.sum() - itself) / (n * (n - 1)))


def _margin(ctx: CheckContext, last: int) -> FloatArray | None:
    """a - b of the last step's pairs, of a set that was not trained on; None without it."""
    if ctx.run.role(ctx.pairs.split) in ("train", "train_probe"):
        return None
    a, b = ctx.pairs.ratios(ctx.pairs.at(last))
    margin: FloatArray = (a - b)[np.isfinite(a - b)]
    return margin if margin.size > 1 and margin.any() else None


_CHOSEN, _REJECTED = -20.0 + noise(40), -8.0 + noise(40, seed=1)

register(
    Check(
        code="DVG029",
        title="perplexity prefers the rejected answers",
        says="Before training, the rejected answer has the lower perplexity in most pairs, as it has where the "
        "rejected answers are the model's own.",
        why="Tools that clean preference data by perplexity take a pair whose chosen answer is the less likely one "
        "for a wrong label. On such pairs that is what a right label looks like: they would drop or swap the very "
        "pairs that teach something. The margin of a trained policy, on pairs that it was not trained on, has no "
        "such bias.",
        needs="per-pair sums with token or byte counts",
        severity="info",
        evidence={
            "share_rejected_first": "share of pairs whose rejected answer has the lower perplexity, with its interval",
            "auc": "AUC of the perplexity gap as a detector of swapped labels: a swap negates a pair's gap, so which "
            "labels are wrong need not be known",
            "under": "the model that was asked: the reference, or the policy at the first step",
            "auc_of_margin": "the same of the margin over the reference at the last step; absent for training pairs",
            "step": "that step",
            "margin_is_better": "whether the margin beats both chance and perplexity",
        },
        false_alarms=("labels that are wrong in most pairs look the same: read a dozen of them",),
        bad=Example(
            "Rejected (8 nats over 10 tokens) is likelier than chosen (20) in all 40 pairs.",
            pairs={0: (_CHOSEN, _REJECTED), 9: (_CHOSEN + 1, _REJECTED - 5)},
            reference=(_CHOSEN, _REJECTED),
        ),
        good=Example(
            "Chosen is the likelier one.",
            pairs={0: (_REJECTED, _CHOSEN), 9: (_REJECTED + 1, _CHOSEN - 5)},
            reference=(_REJECTED, _CHOSEN),
        ),
        try_next=(
            "neither drop nor swap these pairs by perplexity",
            Advice(
                "where labels are in doubt, read first the pairs whose margin stays negative at the last step",
                (SOUND, has("DVG029", "margin_is_better")),
            ),
        ),
        sources=("PerpCorrect and its kin; measured here on pairs whose rejected answers are the model's own",),
        since="0.2.0",
        function=perplexity_order,
        reads=("confidence", "ppl_order_min_pairs", "ppl_order_min_share"),
    )
)
