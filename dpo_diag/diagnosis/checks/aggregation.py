"""What an average hides: DVG003 the aggregator, DVG004 a few pairs, DVG005 length, DVG015 tokenizers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks.base import Missing, Outcome, Thresholds, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.stats import bootstrap, mean_interval, ratio, top_share
from dpo_diag.records import metrics as m


def aggregator(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG003: chosen perplexity rose by one average and fell by another between the same two checkpoints."""
    pairs = ctx.maybe(lambda: [ctx.counted(f) for f in ctx.change()])
    if pairs is None:
        return _aggregator_of_means(ctx, t)
    before, after = pairs
    s0, s1, n0, n1 = (x.to_numpy() for x in (before["s_c"], after["s_c"], before["n_c"], after["n_c"]))

    def changes(i: Any) -> dict[str, float]:
        return {name: f(s1[i], n1[i]) - f(s0[i], n0[i]) for name, f in m.PERPLEXITIES.items()}

    point = changes(np.arange(len(s0)))
    low, high = min(point, key=lambda k: point[k]), max(point, key=lambda k: point[k])
    evidence: dict[str, Any] = {
        "dlog": point,
        "from": {name: m.safe_exp(f(s0, n0)) for name, f in m.PERPLEXITIES.items()},
        "to": {name: m.safe_exp(f(s1, n1)) for name, f in m.PERPLEXITIES.items()},
        "pairs": len(s0),
        "unit": "byte" if before["n_c"].equals(before["bytes_c"]) else "token",
    }
    if not before[["bytes_c"]].isna().to_numpy().any():
        evidence["bits_per_byte"] = [m.bits_per_byte(s0, before["bytes_c"]), m.bits_per_byte(s1, after["bytes_c"])]
    if not (point[low] <= -t["aggregator_min_dlog"] and point[high] >= t["aggregator_min_dlog"]):
        return silent("the three perplexities of chosen agree in sign", **evidence)
    gap = bootstrap(lambda i: changes(i)[high] - changes(i)[low], len(s0), t["confidence"])
    evidence["gap_dlog"] = gap
    # The sign on this very set is a fact; resampling matters only where both changes are small.
    if not gap.above and gap.value < t["aggregator_clear_gap"]:
        return cannot_tell(f"{high} rose and {low} fell, but the gap is inside its noise", **evidence)
    return speaks(
        f"chosen {high} rose ({evidence['from'][high]:.3f} to {evidence['to'][high]:.3f}) while {low} fell "
        f"({evidence['from'][low]:.3f} to {evidence['to'][low]:.3f}): the sign is the aggregator's",
        **evidence,
    )


def _aggregator_of_means(ctx: CheckContext, t: Thresholds) -> Outcome:
    """The same from logged means: ppl_token, ppl_seq_mean, ppl_seq_geomean, ce of one fixed set."""
    for split in ctx.fixed_splits:
        found: dict[str, list[float]] = {}
        for name in (*(f"{p}/chosen" for p in m.PERPLEXITIES), "ce/chosen"):
            series = ctx.find(name, split)
            if series is not None and len(series) >= 2:
                first, last = float(series.values[0]), float(series.values[-1])
                if name != "ce/chosen" and min(first, last) <= 0:
                    continue  # no perplexity: whatever logged it meant something else
                found[name] = [first, last] if name == "ce/chosen" else [math.log(first), math.log(last)]
        if len(found) < 2:
            continue
        change = {k: v[1] - v[0] for k, v in found.items()}
        evidence: dict[str, Any] = {"dlog": change, "split": split}
        if min(change.values()) <= -t["aggregator_min_dlog"] and max(change.values()) >= t["aggregator_min_dlog"]:
            return speaks("two averages of the chosen perplexity moved in opposite directions", **evidence)
        return silent("the logged perplexities of chosen agree in sign", **evidence)
    raise Missing("needs per-pair sums with token or byte counts, or two logged perplexities of one fixed set")


def few_pairs(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG004: a few hard pairs carry the rise of chosen `ppl_seq_mean`."""
    before, after = (ctx.counted(f) for f in ctx.change())
    if len(before) < t["few_pairs_min_pairs"]:
        raise Missing(f"{len(before)} pairs: too few to say that a few of them dominate")
    c0, c1 = m.ce(before["s_c"], before["n_c"]), m.ce(after["s_c"], after["n_c"])
    dlog = m.log_mean_exp(c1) - m.log_mean_exp(c0)
    k = max(1, int(t["few_pairs_share_of_pairs"] * len(c0)))
    # Scaled by the largest exponent so that a CE of 800 does not overflow; shares do not change.
    top = max(float(c0.max()), float(c1.max()))
    gains = np.exp(c1 - top) - np.exp(c0 - top)
    share = top_share(gains, k)
    order = np.argsort(gains)[::-1]
    rest = np.setdiff1d(np.arange(len(c0)), order[:k])
    without = m.log_mean_exp(c1[rest]) - m.log_mean_exp(c0[rest])
    evidence: dict[str, Any] = {
        "dlog_ppl_seq_mean": dlog, "without_them": without, "share_of_rise": share, "k": k, "pairs": len(c0),
        "pair_ids": list(after.index[order[:k]]), "ce_from": c0[order[:k]], "ce_to": c1[order[:k]],
    }  # fmt: skip
    if dlog < t["few_pairs_min_dlog"]:
        return silent("chosen ppl_seq_mean did not rise", **evidence)
    if share >= t["few_pairs_min_share"] and without <= 0.5 * dlog:
        return speaks(f"{k} of {len(c0)} pairs carry {share:.0%} of the rise of chosen ppl_seq_mean", **evidence)
    return silent("the rise is spread over many pairs", **evidence)


def length(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG005: the sum margin grew, but not the margin per token: only the lengths differ (or they carry the PPL)."""
    before, after = (ctx.counted(f) for f in ctx.change())
    dc, dr = (after["s_c"] - before["s_c"]).to_numpy(), (after["s_r"] - before["s_r"]).to_numpy()
    nc, nr = after["n_c"].to_numpy(), after["n_r"].to_numpy()
    margin, per_token = mean_interval(dc - dr, t["confidence"]), mean_interval(dc / nc - dr / nr, t["confidence"])
    gap = nr - nc
    spread = float(np.std(gap)) * float(np.std(dc - dr))
    correlation = float(np.corrcoef(gap, dc - dr)[0, 1]) if spread > 0 else math.nan
    level = m.mean_ce(after["s_c"], nc) - m.mean_ce(before["s_c"], before["n_c"])
    weight = m.length_weight(after["s_c"], nc) - m.length_weight(before["s_c"], before["n_c"])
    evidence: dict[str, Any] = {
        "margin_gain": margin, "margin_gain_per_token": per_token, "length_gap_rejected_minus_chosen": gap.mean(),
        "correlation_of_gain_with_length_gap": correlation, "level": level, "length_weight": weight,
    }  # fmt: skip
    pace = margin.value / float(np.mean((nc + nr) / 2))
    if margin.above and per_token.high < t["length_max_share"] * pace and gap.mean() > 0:
        return speaks(
            f"the margin grew by {margin.value:.3g} nats per pair, but per token by {per_token.value:.3g}: rejected "
            f"is {gap.mean():.3g} tokens longer, and both sides fell alike",
            **evidence,
        )
    if abs(level + weight) >= t["aggregator_min_dlog"] and abs(weight) >= t["length_min_share_of_ppl"] * (
        abs(level) + abs(weight)
    ):
        s0, s1, n0 = before["s_c"].to_numpy(), after["s_c"].to_numpy(), before["n_c"].to_numpy()
        interval = bootstrap(
            lambda i: m.length_weight(s1[i], nc[i]) - m.length_weight(s0[i], n0[i]), len(nc), t["confidence"]
        )
        evidence["length_weight_interval"] = interval
        if not (interval.above or interval.below):
            return cannot_tell("the length-weight term is inside its noise", **evidence)
        return speaks(
            f"{ratio(abs(weight), abs(level) + abs(weight)):.0%} of the change of chosen ppl_token is length weight: "
            "long and short responses moved apart",
            **evidence,
        )
    return silent("lengths do not explain the change", **evidence)


def tokenizers(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG015: perplexities per token of different tokenizers are not comparable; bits per byte are."""
    named = {"policy": ctx.info.tokenizer, "reference": ctx.info.reference.tokenizer}
    named |= {f"checkpoint {i}": other for i, other in enumerate(ctx.info.other_tokenizers)}
    names = {k: str(t.fingerprint or t.name) for k, t in named.items() if t is not None and (t.fingerprint or t.name)}
    evidence: dict[str, Any] = {"tokenizers": names}
    counted = ctx.pairs[ctx.pairs["n_tokens"].notna()]
    differing = 0.0
    if not counted.empty:
        spread = counted.groupby(["split", "pair_id", "side"])["n_tokens"].agg(["min", "max", "count"])
        cut = counted["n_truncated"].fillna(0).gt(0).any()
        repeated = spread[spread["count"] > 1]
        if len(repeated) and not cut:
            differing = float((repeated["min"] != repeated["max"]).mean())
        reference = counted[counted["ref_n_tokens"].notna()]
        if len(reference) and not cut:
            differing = max(differing, float((reference["n_tokens"] != reference["ref_n_tokens"]).mean()))
        evidence["responses_counted_differently"] = differing
        evidence["bits_per_byte"] = _bits_per_byte(ctx)
    if len(set(names.values())) > 1 or differing > t["tokenizer_max_differing"]:
        return speaks("token counts or tokenizers differ: compare bits per byte, never perplexity", **evidence)
    if counted.empty and len(names) == 0:
        raise Missing("neither a tokenizer nor token counts are recorded")
    return silent("one tokenizer", **evidence)


def _bits_per_byte(ctx: CheckContext) -> dict[str, float]:
    result = {}
    for split, rows in ctx.pairs[ctx.pairs["side"] == "chosen"].groupby("split"):
        for step, part in rows.groupby("step"):
            if part["n_bytes"].notna().all():
                result[f"{split}@{step}"] = m.bits_per_byte(part["sum_logp"], part["n_bytes"])
    return dict(list(result.items())[:1] + list(result.items())[-1:])
