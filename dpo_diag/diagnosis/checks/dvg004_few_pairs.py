"""DVG004: a few hard pairs carry the rise of chosen `ppl_seq_mean`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import PERPLEXITY_ORDERS, SOUND, Advice
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.checks.shared.perplexities import chosen_sums
from dpo_diag.records import metrics
from dpo_diag.stats import FloatArray
from dpo_diag.text import percent
from dpo_diag.thresholds import Thresholds


def few_pairs(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Speaks where the pairs that rose most carry most of the gross rise, and without them little is left."""
    before, after = ctx.pairs.counted_change()
    n = len(before)
    if n < t["few_pairs_min_pairs"]:
        raise Missing(f"{n} pairs: too few to say that a few of them dominate")
    ce0, ce1 = metrics.ce(*chosen_sums(before)), metrics.ce(*chosen_sums(after))
    dlog = metrics.log_mean_exp(ce1) - metrics.log_mean_exp(ce0)
    most_pairs = max(1, int(t["few_pairs_share_of_pairs"] * n))
    # Scaled by the largest exponent so that a CE of 800 does not overflow; shares do not change.
    top = max(float(ce0.max()), float(ce1.max()))
    gains = np.exp(ce1 - top) - np.exp(ce0 - top)
    k = carriers(gains, t["few_pairs_min_share"], most_pairs)
    share = top_share(gains, k)
    order = np.argsort(gains)[::-1]
    most, rest = order[:k], order[k:]
    without = metrics.log_mean_exp(ce1[rest]) - metrics.log_mean_exp(ce0[rest])
    evidence: dict[str, Any] = {
        "dlog_ppl_seq_mean": dlog, "without_them": without, "share_of_rise": share, "k": k, "pairs": n,
        "pair_ids": list(after.index[most]), "ce_from": ce0[most], "ce_to": ce1[most],
    }  # fmt: skip
    if dlog < t["few_pairs_min_dlog"]:
        return silent("chosen ppl_seq_mean did not rise", **evidence)
    if share >= t["few_pairs_min_share"] and without <= t["few_pairs_max_rest"] * dlog:
        return speaks(f"{k} of {n} pairs carry {percent(share)} of the rise of chosen ppl_seq_mean", **evidence)
    return silent("the rise is spread over many pairs", **evidence)


def carriers(gains: FloatArray, share: float, most: int) -> int:
    """How many pairs carry the rise: the fewest whose gains make `share` of the gross rise, and those that rose at
    least half as much as the least of them; at most `most`.

    >>> carriers(np.array([30.0, 28.0, 0.1, 0.1, 0.1]), 0.5, 5), carriers(np.array([9.0, 1.0, 1.0]), 0.5, 3)
    (2, 1)
    """
    rises = np.sort(gains[gains > 0])[::-1]
    if not rises.size:
        return most
    fewest = int(np.searchsorted(np.cumsum(rises), share * rises.sum())) + 1
    alike = int((rises >= 0.5 * rises[min(fewest, rises.size) - 1]).sum())
    return min(max(fewest, alike), most)


def top_share(gains: FloatArray, k: int) -> float:
    """Share of the gross rise (the sum of positive gains) that its k largest carry; NaN if nothing rose."""
    rises = np.sort(gains[gains > 0])[::-1]
    total = float(rises.sum())
    return float(rises[:k].sum() / total) if total > 0 else math.nan


register(
    Check(
        code="DVG004",
        title="a few hard pairs dominate",
        says="A few pairs, at most one in twenty, carry at least half of the rise of chosen ppl_seq_mean, and without "
        "them at most half of it is left.",
        why="ppl_seq_mean averages perplexities, so one response with a cross-entropy of 9 weighs as much as three "
        "thousand with 1. The headline then tells of a handful of pairs, not of the set.",
        needs="per-pair sums with token counts at two steps",
        severity="info",
        evidence={
            "dlog_ppl_seq_mean": "log-change of chosen ppl_seq_mean",
            "without_them": "the same without the k pairs",
            "share_of_rise": "share of the gross rise that the k pairs carry",
            "k": "pairs that carry it; silent: at most 5 % of all",
            "pairs": "all pairs",
            "pair_ids": "the k pairs, largest rise first",
            "ce_from": "their cross-entropy at the first step, nats per token",
            "ce_to": "and at the last",
        },
        false_alarms=("a small set: 5 % of 20 pairs is one pair",),
        bad=Example(
            "Two of 40 responses rise from a cross-entropy of 1 to 4, the others stay at 1.",
            pairs={0: ([-10.0] * 40, -10.0), 5: ([-40.0] * 2 + [-10.0] * 38, -20.0)},
        ),
        good=Example(
            "All 40 responses rise from a cross-entropy of 1 to 1.2.",
            pairs={0: ([-10.0] * 40, -10.0), 5: ([-12.0] * 40, -20.0)},
        ),
        try_next=(
            "read those pairs: foreign text and cut answers look like this",
            Advice("look for wrong labels among them", (SOUND, PERPLEXITY_ORDERS)),
            "judge by ppl_seq_geomean or by the median pair",
        ),
        sources=("h2oai/h2o-llmstudio issue 594",),
        since="0.1.0",
        function=few_pairs,
        reads=(
            "few_pairs_min_pairs",
            "few_pairs_share_of_pairs",
            "few_pairs_min_share",
            "few_pairs_min_dlog",
            "few_pairs_max_rest",
        ),
    )
)
