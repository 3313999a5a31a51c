"""DVG005: the margin of sums grew, but not the margin per token; or lengths carry the change of ppl_token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import LOSS_TAUGHT, SUMS, Advice
from dpo_diag.diagnosis.checks.shared.check import Check, Outcome, cannot_tell, ratio, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.checks.shared.perplexities import chosen_sums, log_changes
from dpo_diag.records import metrics
from dpo_diag.stats import FloatArray, Interval
from dpo_diag.text import percent
from dpo_diag.thresholds import Thresholds


def length(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Speaks where only the lengths make the margin, or where they make most of the change of ppl_token."""
    before, after = ctx.pairs.counted_change()
    over_pairs = ctx.pairs.intervals(t)
    dc, dr = ((after[c] - before[c]).to_numpy() for c in ("chosen_sum_logp", "rejected_sum_logp"))
    nc, nr = (after[c].to_numpy() for c in ("chosen_n_tokens", "rejected_n_tokens"))
    gap, gain = nr - nc, dc - dr
    varies = float(np.std(gap)) * float(np.std(gain)) > 0
    level, weight = _level_and_weight(before, after)
    evidence: dict[str, Any] = {
        "margin_gain": over_pairs.mean(gain, after.index),
        "margin_gain_per_token": over_pairs.mean(dc / nc - dr / nr, after.index),
        "length_gap_rejected_minus_chosen": gap.mean(),
        "correlation_of_gain_with_length_gap": float(np.corrcoef(gap, gain)[0, 1]) if varies else math.nan,
        "level": level, "length_weight": weight,
    }  # fmt: skip
    by_margin = _of_margin(dc, dr, nc, nr, lambda values, kept: over_pairs.mean(values, after.index[kept]), t, evidence)
    if by_margin is not None:
        return by_margin
    # A handful of pairs that collapsed says nothing about length, whatever theirs is (DVG004 names them).
    few = max(1, int(t["few_pairs_share_of_pairs"] * len(nc)))
    usual = np.argsort(np.abs(dc / nc))[:-few]
    kept = ratio(_level_and_weight(before.iloc[usual], after.iloc[usual])[1], weight)
    if not (_by_weight(level, weight, t) and kept >= t["length_min_kept"]):
        return silent("lengths do not explain the change", **evidence)
    changes = log_changes(before, after)
    interval = over_pairs.of_statistic(
        lambda counts: changes(counts)["ppl_token"] - changes(counts)["ppl_seq_geomean"], after.index
    )
    evidence["length_weight_interval"] = interval
    if not (interval.above or interval.below):
        return cannot_tell("the length-weight term is inside its noise", **evidence)
    return speaks(
        f"{percent(ratio(abs(weight), abs(level) + abs(weight)))} of the change of chosen ppl_token is length weight: "
        "long and short responses moved apart",
        **evidence,
    )


def _of_margin(
    dc: FloatArray,
    dr: FloatArray,
    nc: FloatArray,
    nr: FloatArray,
    mean: Callable[[FloatArray, npt.NDArray[np.intp]], Interval],
    t: Thresholds,
    evidence: dict[str, Any],
) -> Outcome | None:
    """Speaks where the sums part and the means per token do not, of all pairs and without the few that moved most."""
    gap, gain = nr - nc, dc - dr
    few = max(1, int(t["few_pairs_share_of_pairs"] * len(gap)))
    for kept in (np.arange(len(gap)), np.argsort(np.abs(gain))[:-few]):
        margin, per_token = mean(gain[kept], kept), mean((dc / nc - dr / nr)[kept], kept)
        # The margin per token that the margin of sums would make at the mean length.
        expected = margin.value / float(np.mean((nc + nr)[kept] / 2))
        if not (margin.above and per_token.high < t["length_max_share"] * expected):
            return None
    longer = f"{'rejected' if gap.mean() > 0 else 'chosen'} is {abs(gap.mean()):.3g} tokens longer"
    way = "fell" if dc.mean() < 0 and dr.mean() < 0 else "rose" if dc.mean() > 0 and dr.mean() > 0 else "moved"
    margin, per_token = evidence["margin_gain"], evidence["margin_gain_per_token"]
    return speaks(
        f"the margin grew by {margin.value:.3g} nats per pair, but per token by {per_token.value:.3g}: {longer}, and "
        f"both sides {way} alike",
        severity="warning",
        **evidence,
    )


def _level_and_weight(before: pd.DataFrame, after: pd.DataFrame) -> tuple[float, float]:
    """Changes of the chosen side's mean cross-entropy and of its length-weight term."""
    start, end = (chosen_sums(frame) for frame in (before, after))
    return metrics.mean_ce(*end) - metrics.mean_ce(*start), metrics.length_weight(*end) - metrics.length_weight(*start)


def _by_weight(level: float, weight: float, t: Thresholds) -> bool:
    """Whether ppl_token moved, and most of that through its length-weight term."""
    moved = abs(level + weight) >= t["aggregator_min_dlog"]
    return moved and abs(weight) >= t["length_min_share_of_ppl"] * (abs(level) + abs(weight))


_REFERENCE = -40.0 + noise(50), -80.0 + noise(50, seed=1)

register(
    Check(
        code="DVG005",
        title="length explains it",
        says="The margin grew in summed log-probs but hardly per token: the longer side lost more, or gained more, and "
        "both moved alike per token (a warning). Or most of the change of chosen ppl_token is its length-weight term.",
        why="DPO compares sums. A longer rejected response loses more nats for the same loss per token, so the loss "
        "falls although the model prefers nothing. The model may learn length instead of quality.",
        needs="per-pair sums with token counts at two steps",
        severity="info",
        evidence={
            "margin_gain": "change of chosen minus rejected, nats per pair, with its interval",
            "margin_gain_per_token": "change of chosen minus rejected, nats per token, with its interval",
            "length_gap_rejected_minus_chosen": "mean difference of the lengths, tokens (or bytes)",
            "correlation_of_gain_with_length_gap": "over pairs; null where lengths or gains do not vary",
            "level": "change of the mean cross-entropy of chosen, nats per token",
            "length_weight": "change of cov(n, ce) / mean n of chosen: ppl_token's log-change less the level",
            "length_weight_interval": "its bootstrap interval over pairs",
        },
        false_alarms=("long rejected responses are worse for their length, and the data mean it so",),
        bad=Example(
            "Both sides fall by 0.1 nats a token; chosen has 40 tokens, rejected 80: the margin grows by 4 nats.",
            pairs={
                0: _REFERENCE,
                5: (_REFERENCE[0] - 4 + noise(50, 0.2, 2), _REFERENCE[1] - 8 + noise(50, 0.2, 3)),
            },
            tokens=(40, 80),
        ),
        good=Example(
            "Chosen rises by 1 nat, rejected falls by 12: the margin grows per token too.",
            pairs={0: _REFERENCE, 5: (_REFERENCE[0] + 1, _REFERENCE[1] - 12 + noise(50, 0.2, 3))},
            tokens=(40, 80),
        ),
        try_next=(
            Advice("normalise by length (sigmoid_norm, ipo, ld_alpha)", (*LOSS_TAUGHT, SUMS)),
            Advice("balance the lengths of chosen and rejected", LOSS_TAUGHT),
        ),
        sources=("Park et al. 2024, arXiv 2403.19159 (length in DPO)", "LD-DPO, arXiv 2409.06411"),
        since="0.1.0",
        function=length,
        reads=(
            "confidence",
            "aggregator_min_dlog",
            "length_max_share",
            "length_min_share_of_ppl",
            "length_min_kept",
            "few_pairs_share_of_pairs",
        ),
    )
)
