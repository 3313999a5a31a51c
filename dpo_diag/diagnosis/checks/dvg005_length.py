"""DVG005: the margin of sums grew, but not the margin per token; or lengths carry the change of ppl_token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import LOSS_TAUGHT, SUMS, Advice
from dpo_diag.diagnosis.checks.shared.check import Check, Outcome, cannot_tell, ratio, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.checks.shared.perplexities import chosen_sums, log_changes
from dpo_diag.records import metrics
from dpo_diag.stats import bootstrap, t_interval
from dpo_diag.thresholds import Thresholds


def length(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Speaks where only the lengths make the margin, or where they make most of the change of ppl_token."""
    before, after = ctx.pairs.counted_change()
    dc, dr = ((after[c] - before[c]).to_numpy() for c in ("chosen_sum_logp", "rejected_sum_logp"))
    nc, nr = (after[c].to_numpy() for c in ("chosen_n_tokens", "rejected_n_tokens"))
    margin = t_interval(dc - dr, t["confidence"])
    per_token = t_interval(dc / nc - dr / nr, t["confidence"])
    gap = nr - nc
    varies = float(np.std(gap)) * float(np.std(dc - dr)) > 0
    level, weight = (f(*chosen_sums(after)) - f(*chosen_sums(before)) for f in (metrics.mean_ce, metrics.length_weight))
    evidence: dict[str, Any] = {
        "margin_gain": margin, "margin_gain_per_token": per_token, "length_gap_rejected_minus_chosen": gap.mean(),
        "correlation_of_gain_with_length_gap": float(np.corrcoef(gap, dc - dr)[0, 1]) if varies else math.nan,
        "level": level, "length_weight": weight,
    }  # fmt: skip
    # The margin per token that the margin of sums would make at the mean length.
    expected_per_token = margin.value / float(np.mean((nc + nr) / 2))
    if margin.above and per_token.high < t["length_max_share"] * expected_per_token and gap.mean() > 0:
        return speaks(
            f"the margin grew by {margin.value:.3g} nats per pair, but per token by {per_token.value:.3g}: rejected "
            f"is {gap.mean():.3g} tokens longer, and both sides fell alike",
            **evidence,
        )
    parts = abs(level) + abs(weight)
    moved = abs(level + weight) >= t["aggregator_min_dlog"]
    if not (moved and abs(weight) >= t["length_min_share_of_ppl"] * parts):
        return silent("lengths do not explain the change", **evidence)
    changes = log_changes(before, after)
    interval = bootstrap(
        lambda counts: changes(counts)["ppl_token"] - changes(counts)["ppl_seq_geomean"], len(nc), t["confidence"]
    )
    evidence["length_weight_interval"] = interval
    if not (interval.above or interval.below):
        return cannot_tell("the length-weight term is inside its noise", **evidence)
    return speaks(
        f"{ratio(abs(weight), parts):.0%} of the change of chosen ppl_token is length weight: long and short responses "
        "moved apart",
        **evidence,
    )


_REFERENCE = -40.0 + noise(50), -80.0 + noise(50, seed=1)

register(
    Check(
        code="DVG005",
        title="length explains it",
        says="The margin grew in summed log-probs but hardly per token: rejected responses are longer, and both sides "
        "fell alike per token. Or most of the change of chosen ppl_token is its length-weight term.",
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
        reads=("confidence", "aggregator_min_dlog", "length_max_share", "length_min_share_of_ppl"),
    )
)
