"""Where the likelihood went: DVG001 displacement, DVG002 rejected collapse, DVG012 squeezing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks.base import Missing, Outcome, Thresholds, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.falls import chosen_falls, chosen_series, displaced
from dpo_diag.diagnosis.checks.stats import Interval, ends, mean_interval, ratio
from dpo_diag.records.metrics import quadrants

CAVEAT = "likelihoods alone cannot say whether this is harm: compare outputs or a task score"


def displacement(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG001: the chosen responses became less likely while the loss fell (Razin et al. 2024)."""
    falls = chosen_falls(ctx, t)
    fall = displaced(ctx, t)
    if fall is not None:
        both = fall.more.get("quadrants", {}).get("both_fell")
        loss = "while the loss fell" if fall.loss_fell else "(whether the loss fell is not recorded)"
        share = f"; both sides fell in {both:.0%} of pairs" if both is not None else ""
        return speaks(
            f"chosen log-prob fell by {-fall.delta.value:.3g} {fall.unit.replace('_', ' ')} ({fall.window}, "
            f"steps {fall.from_step:.0f} to {fall.to_step:.0f}) {loss}{share}; {CAVEAT}",
            **fall.evidence(),
            all_windows=[f.evidence() for f in falls],
        )
    for f in falls:
        if f.material(t) and f.loss_fell is False and f.delta.below:
            return silent("chosen fell, but so did not the loss: see divergence and overfitting", **f.evidence())
    unclear = [f for f in falls if f.material(t) and not f.delta.below and f.loss_fell is not False]
    if unclear:
        f = unclear[0]
        return cannot_tell(f"chosen changed by {f.delta} {f.unit}: inside the noise", **f.evidence())
    return silent("chosen did not fall materially", **falls[0].evidence())


def rejected_collapse(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG002: the rejected responses' probability drops far beyond what the loss needs (3D-properties)."""
    pairs = ctx.maybe(ctx.change)
    if pairs is not None:
        after = pairs[1]
        a, b = ctx.ratios(after)
        fall, gain = mean_interval(b, t["confidence"]), float(np.mean(a - b))
        level = float(np.mean(after["s_r"].to_numpy() - b))
        beta = ctx.beta
        return _collapse(
            t, fall.scaled(beta) if beta else None, ratio(-fall.value, -level), fall.below, ratio(-fall.value, gain),
            {"source": "pairs", "rejected_change": fall, "margin_change": gain,
             "pairs_that_fell_most": list(after.index[np.argsort(b)[:5]])},
        )  # fmt: skip
    for split in [*ctx.fixed_splits, *ctx.train_splits]:
        rewards = ctx.find("rewards/rejected", split)
        margins = ctx.find("rewards/margins", split)
        if rewards is None or len(rewards) < 2 or ctx.reference_free:
            continue
        if rewards.fixed:
            level_of = Interval(float(rewards.values[-1]), float(rewards.values[-1]), float(rewards.values[-1]), 1)
            gain = float(margins.values[-1]) if margins else math.nan
        else:
            trend = ends(rewards.values, t["confidence"])
            if trend is None:
                continue
            level_of = trend.last_level
            gain = float(margins.values[-trend.k :].mean()) if margins else math.nan
        relative = math.nan
        logps, beta = ctx.find("logps/rejected", split), ctx.beta
        if logps is not None and beta and not ctx.mean_logps:
            k = 1 if rewards.fixed else level_of.n
            reference = float(logps.values[-k:].mean() - level_of.value / beta)
            relative = ratio(-level_of.value / beta, -reference) if reference < 0 else math.nan
        elif logps is not None and len(logps) >= 2:
            trend_logps = ends(logps.values, t["confidence"])
            first, last = (
                (trend_logps.first, trend_logps.last)
                if trend_logps is not None and not logps.fixed
                else (float(logps.values[0]), float(logps.values[-1]))
            )
            relative = (first - last) / -first if first < 0 else math.nan
        return _collapse(
            t, level_of, relative, level_of.below, ratio(-level_of.value, gain),
            {"source": f"means of {split}", "margin": gain},
        )  # fmt: skip
    for split in [*ctx.fixed_splits, *ctx.train_splits]:
        logps = ctx.find("logps/rejected", split)
        if logps is None:
            continue
        trend = ends(logps.values, t["confidence"])
        if trend is None:
            continue
        chosen = ctx.find("logps/chosen", split)
        chosen_trend = ends(chosen.values, t["confidence"]) if chosen else None
        gain = (chosen_trend.delta.value if chosen_trend else math.nan) - trend.delta.value
        return _collapse(
            t, None, ratio(-trend.delta.value, -trend.first), trend.delta.below, ratio(-trend.delta.value, gain),
            {"source": f"means of {split}", "rejected_change": trend.delta},
        )  # fmt: skip
    raise Missing("neither pairs nor rewards/rejected or logps/rejected at enough steps")


def _collapse(
    t: Thresholds,
    reward: Interval | None,
    relative: float,
    beyond_noise: bool,
    share: float,
    evidence: dict[str, Any],
) -> Outcome:
    evidence |= {"rejected_reward": reward, "relative_rise_of_rejected_nll": relative, "share_of_margin": share}
    far = relative >= t["collapse_relative"] or (reward is not None and reward.value <= t["collapse_reward"])
    if not far:
        return silent("rejected did not fall out of proportion", **evidence)
    if not beyond_noise:
        return cannot_tell("the fall of rejected is inside its noise", **evidence)
    if math.isfinite(share) and share < t["collapse_share_of_margin"]:
        return silent("rejected fell far, but chosen made most of the margin", **evidence)
    by = f"by {relative:.0%} of its negative log-prob" if math.isfinite(relative) else ""
    at = f"to an implicit reward of {reward.value:.3g}" if reward is not None else ""
    return speaks(f"rejected fell {' and '.join(x for x in (by, at) if x)}; {CAVEAT}", **evidence)


def squeezing(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG012: the mass moves to the model's own greedy tokens while both sides fall (Ren and Sutherland 2024)."""
    pairs = ctx.maybe(ctx.change)
    if pairs is not None:
        before, after = pairs
        a, b = (after["s_c"] - before["s_c"]).to_numpy(), (after["s_r"] - before["s_r"]).to_numpy()
        signs = {
            "entropy": _side_change(before, after, "ent", t["confidence"]),
            "greedy_logp": _side_change(before, after, "greedy", t["confidence"]),
        }
        known = {k: v for k, v in signs.items() if v is not None}
        if known:
            chosen, rejected = mean_interval(a, t["confidence"]), mean_interval(b, t["confidence"])
            found_here: dict[str, Any] = {
                "chosen_change": chosen, "rejected_change": rejected, "unit": "nats per response",
                **{f"{k}_change_per_token": v for k, v in known.items()},
                "both_fell": quadrants(a, b).both_fell,
            }  # fmt: skip
            if not (chosen.below and rejected.below and -chosen.value >= t["displacement_min_nats"]):
                return silent("the two sides did not both fall", **found_here)
            return _squeezed(known, t, found_here)
    for split in [*ctx.fixed_splits, *ctx.train_splits]:
        entropy = ctx.find("entropy", split)
        found = chosen_series(ctx, split)
        rejected_series = ctx.find("rewards/rejected", split) or ctx.find("logps/rejected", split)
        if entropy is None or found is None or rejected_series is None:
            continue
        trend = ends(entropy.values, t["confidence"])
        chosen_trend = ends(found[2] * found[0].values, t["confidence"])
        rejected_trend = ends(rejected_series.values, t["confidence"])
        if trend is None or chosen_trend is None or rejected_trend is None:
            continue
        known = {"entropy": trend.delta}
        greedy = ctx.find("greedy_logp/chosen", split)
        greedy_trend = ends(greedy.values, t["confidence"]) if greedy else None
        if greedy_trend is not None:
            known["greedy_logp"] = greedy_trend.delta
        evidence: dict[str, Any] = {
            "source": f"means of {split}", "chosen_change": chosen_trend.delta,
            "rejected_change": rejected_trend.delta, **{f"{k}_change": v for k, v in known.items()},
        }  # fmt: skip
        if not (chosen_trend.delta.below and rejected_trend.delta.below):
            return silent("the two sides did not both fall beyond noise", **evidence)
        relative = {"entropy": trend.delta.scaled(1 / max(abs(trend.first), 1e-9)), **known}
        if greedy_trend is None:
            drop = -relative["entropy"].value if known["entropy"].below else 0.0
            if drop >= t["squeezing_min_entropy_share"]:
                return speaks(f"both sides fell and the entropy fell by {drop:.0%}", **evidence)
            return silent("the entropy did not fall", **evidence)
        return _squeezed(known, t, evidence)
    raise Missing("neither entropy nor greedy log-prob is recorded beside both sides' log-probs")


def _side_change(before: Any, after: Any, column: str, confidence: float) -> Interval | None:
    """Change per token of a per-response sum, both sides together; None where it was not recorded."""
    changes = []
    for letter in ("c", "r"):
        change = (after[f"{column}_{letter}"] - before[f"{column}_{letter}"]) / after[f"n_{letter}"]
        if change.isna().all():
            return None
        changes.append(change.to_numpy())
    return mean_interval(np.mean(changes, axis=0), confidence)


def _squeezed(known: dict[str, Interval], t: Thresholds, evidence: dict[str, Any]) -> Outcome:
    least = t["squeezing_min_nats_per_token"]
    entropy, greedy = known.get("entropy"), known.get("greedy_logp")
    fell = entropy is None or (entropy.below and -entropy.value >= least)
    rose = greedy is None or (greedy.above and greedy.value >= least)
    if fell and rose:
        return speaks(f"both sides fell while {' and '.join(known)} show mass on the model's own choice", **evidence)
    if any(i is not None and (i.low < -least < i.high or i.low < least < i.high) and not (i.above or i.below)
           for i in (entropy, greedy)):  # fmt: skip
        return cannot_tell("entropy or greedy log-prob changed inside the noise", **evidence)
    return silent("both sides fell, but not in favour of the model's own greedy tokens", **evidence)
