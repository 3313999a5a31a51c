"""DVG003: chosen perplexity rose by one average and fell by another between the same two checkpoints."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.checks.shared.perplexities import chosen_sums, log_changes
from dpo_diag.records import metrics
from dpo_diag.text import by, moved
from dpo_diag.thresholds import Thresholds


def aggregator(ctx: CheckContext, t: Thresholds) -> Outcome:
    """From per-pair sums, else from logged means."""
    change = ctx.maybe(ctx.pairs.counted_change)
    if change is None:
        return _of_means(ctx, t)
    before, after = change
    sums = chosen_sums(before), chosen_sums(after)
    dlog = {name: log(*sums[1]) - log(*sums[0]) for name, log in metrics.PERPLEXITIES.items()}
    start, end = ({name: metrics.safe_exp(log(*s)) for name, log in metrics.PERPLEXITIES.items()} for s in sums)
    in_bytes = before["chosen_n_tokens"].equals(before["chosen_n_bytes"])
    evidence: dict[str, Any] = {
        "dlog": dlog, "from": start, "to": end, "pairs": len(before), "unit": "byte" if in_bytes else "token",
    }  # fmt: skip
    if before["chosen_n_bytes"].notna().all():
        evidence["bits_per_byte"] = [
            metrics.bits_per_byte(frame["chosen_sum_logp"], frame["chosen_n_bytes"]) for frame in change
        ]
    low, high = min(dlog, key=dlog.__getitem__), max(dlog, key=dlog.__getitem__)
    if not (dlog[low] <= -t["aggregator_min_dlog"] and dlog[high] >= t["aggregator_min_dlog"]):
        return silent("the three perplexities of chosen agree in sign", **evidence)
    changes = log_changes(before, after)
    over_pairs = ctx.pairs.intervals(t)
    gap = over_pairs.of_statistic(lambda counts: changes(counts)[high] - changes(counts)[low], before.index)
    evidence["gap_dlog"] = gap
    # The sign on this very set is a fact; resampling matters only where both changes are small.
    if not gap.above and gap.value < t["aggregator_clear_gap"]:
        return cannot_tell(f"{high} rose and {low} fell, but the gap is inside its noise", **evidence)
    return speaks(
        f"chosen {high} {moved(start[high], end[high])} while {low} {moved(start[low], end[low])}: which average is "
        "taken decides the sign",
        **evidence,
    )


def _of_means(ctx: CheckContext, t: Thresholds) -> Outcome:
    """From logged ppl_token, ppl_seq_mean, ppl_seq_geomean, ce of one fixed set."""
    for split in ctx.logged.fixed_splits:
        dlog: dict[str, float] = {}
        for name in (*(f"{p}/chosen" for p in metrics.PERPLEXITIES), "ce/chosen"):
            series = ctx.logged.find(name, split, 2)
            if series is None:
                continue
            first, last = float(series.values[0]), float(series.values[-1])
            if name == "ce/chosen":
                dlog[name] = last - first
            elif min(first, last) > 0:  # else it is no perplexity: whatever logged it meant something else
                dlog[name] = math.log(last) - math.log(first)
        if len(dlog) < 2:
            continue
        least = t["aggregator_min_dlog"]
        low, high = min(dlog, key=dlog.__getitem__), max(dlog, key=dlog.__getitem__)
        if dlog[low] <= -least and dlog[high] >= least:
            reason = (
                f"log {high} {by(dlog[high])} while log {low} {by(dlog[low])}: which average is taken decides the sign"
            )
            return speaks(reason, dlog=dlog, split=split)
        return silent("the logged perplexities of chosen agree in sign", dlog=dlog, split=split)
    raise Missing("needs per-pair sums with token or byte counts, or two logged perplexities of one fixed set")


_BEFORE = -np.tile([1.0, 1.0, 9.0, 1.0], 10)

register(
    Check(
        code="DVG003",
        title="the sign depends on the aggregator",
        says="Between the same two checkpoints chosen perplexity rose by one average and fell by another: over tokens "
        "(ppl_token), over responses (ppl_seq_geomean), or as a mean of perplexities (ppl_seq_mean).",
        why="A mean of perplexities is carried by the few hardest responses, a token mean by the longest ones. Two "
        "tools that print 'perplexity' can then report opposite results of one run, and both are right.",
        needs="per-pair sums with token or byte counts at two steps; or two logged perplexities",
        severity="warning",
        evidence={
            "dlog": "log-change of each chosen perplexity",
            "from": "each perplexity at the first step",
            "to": "each perplexity at the last step",
            "pairs": "pairs behind them",
            "unit": "what a response's length is counted in: token or byte",
            "bits_per_byte": "bits per byte of chosen at both steps",
            "gap_dlog": "largest minus smallest log-change, with a bootstrap interval over pairs",
            "split": "means: the fixed set",
        },
        false_alarms=("both changes are small (below 5 %): then a few pairs more or less turn the sign",),
        bad=Example(
            "Cross-entropies 1, 1, 9, 1 become 4, 4, 4, 4: their mean rises from 3 to 4 while the mean of perplexities "
            "falls from 2027.81 to 54.60.",
            pairs={0: (_BEFORE, _BEFORE), 5: (np.full(40, -4.0), np.full(40, -4.0))},
            tokens=(1, 1),
        ),
        good=Example(
            "Every cross-entropy rises by a tenth.",
            pairs={0: (_BEFORE, _BEFORE), 5: (1.1 * _BEFORE, 1.1 * _BEFORE)},
            tokens=(1, 1),
        ),
        try_next=("report ppl_token and ppl_seq_geomean beside ppl_seq_mean, and say which one you compare",),
        sources=("h2oai/h2o-llmstudio issue 594",),
        since="0.1.0",
        function=aggregator,
        reads=("confidence", "aggregator_min_dlog", "aggregator_clear_gap"),
    )
)
