"""DVG002: the rejected responses' probability drops far beyond what the loss needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import LOSS_TAUGHT, RAISE_BETA, UNBOUNDED, Advice, Condition
from dpo_diag.diagnosis.checks.shared.check import (
    WORST,
    Check,
    Outcome,
    cannot_tell,
    ratio,
    silent,
    speaks,
)
from dpo_diag.diagnosis.checks.shared.chosen_means import level_of
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.checks.shared.levels import Levels, least_fall, logged_levels, unit_of
from dpo_diag.diagnosis.checks.shared.scores import caveat
from dpo_diag.stats import FloatArray, Interval
from dpo_diag.text import number
from dpo_diag.thresholds import Thresholds


def rejected_collapse(ctx: CheckContext, t: Thresholds) -> Outcome:
    """From pairs, else from logged rewards, else from logged log-probs."""
    for source in (_of_pairs, _of_rewards, _of_logps):
        outcome = source(ctx, t)
        if outcome is not None:
            return outcome
    raise ctx.nothing_of("rewards/rejected", "logps/rejected")


def _of_pairs(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    change = ctx.maybe(ctx.pairs.change)
    if change is None:
        return None
    after = change[1]
    a, b = ctx.pairs.since_start(after)
    moved, gain = ctx.pairs.intervals(t).mean(b, after.index), float(np.mean(a - b))
    beta = ctx.info.beta
    return _judge(
        ctx,
        t,
        moved.scaled(beta) if beta else None,
        _levels_of_pairs(after, b),
        beyond_noise=moved.below,
        share=ratio(-moved.value, gain),
        source="pairs",
        rejected_change=moved,
        margin_change=gain,
        pairs_that_fell_most=list(after.index[np.argsort(b)[:WORST]]),
    )


def _of_rewards(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    for split in [] if ctx.reference_free else ctx.logged.splits:
        rewards = ctx.logged.find("rewards/rejected", split, 2)
        level = None if rewards is None else level_of(rewards, t)
        if rewards is None or level is None:
            continue
        margins = ctx.logged.find("rewards/margins", split)
        margin = float(margins.values[-level.n :].mean()) if margins else math.nan
        if own_start := ctx.wrong_reference(t):
            level = level.shifted(-float(rewards.values[: level.n].mean()))
            margin -= float(margins.values[: level.n].mean()) if margins else 0.0
        return _judge(
            ctx, t, level, logged_levels(ctx, split, "rejected", level, t), level.below, ratio(-level.value, margin),
            source=f"means of {split}", margin=margin, from_own_start=own_start,
        )  # fmt: skip
    return None


def _levels_of_pairs(after: pd.DataFrame, moved: FloatArray) -> Levels:
    """Mean sums over mean lengths, so that the relative rise is that of the sums, whatever the unit that is told."""
    sums, n = after["rejected_sum_logp"].to_numpy(), after["rejected_n_tokens"].to_numpy(dtype=np.float64)
    start, end = float(np.mean(sums - moved)), float(np.mean(sums))
    if not (n > 0).all():
        return Levels(start, end, "nats per response")
    unit = "byte" if after["rejected_n_tokens"].equals(after["rejected_n_bytes"]) else "token"
    return Levels(start / float(n.mean()), end / float(n.mean()), f"nats per {unit}")


def _of_logps(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    for split in ctx.logged.splits:
        logps = ctx.logged.find("logps/rejected", split)
        trend = None if logps is None else logps.ends(t["confidence"])
        if logps is None or trend is None:
            continue
        chosen = ctx.logged.find("logps/chosen", split)
        chosen_trend = None if chosen is None else chosen.ends(t["confidence"])
        moved = trend.change
        gain = chosen_trend.change.value - moved.value if chosen_trend else math.nan
        least = math.nan if logps.fixed else least_fall(moved)
        levels, share = Levels(trend.start, trend.end, unit_of(ctx), least), ratio(-moved.value, gain)
        return _judge(ctx, t, None, levels, moved.below, share, source=f"means of {split}", rejected_change=moved)
    return None


def _judge(
    ctx: CheckContext,
    t: Thresholds,
    reward: Interval | None,
    levels: Levels,
    beyond_noise: bool,
    share: float,
    **evidence: Any,
) -> Outcome:
    evidence |= {"rejected_reward": reward, "relative_rise_of_rejected_nll": levels.relative, "share_of_margin": share}
    far = levels.relative >= t["collapse_relative"] or (reward is not None and reward.value <= t["collapse_reward"])
    if not far:
        return silent("rejected did not fall out of proportion", **evidence)
    if not beyond_noise:
        return cannot_tell("the fall of rejected is inside its noise", **evidence)
    if math.isfinite(share) and share < t["collapse_share_of_margin"]:
        return silent("rejected fell far, but chosen made most of the margin", **evidence)
    by = f"rejected's log-prob {levels}" if str(levels) else ""
    to = "" if reward is None else f"its implicit reward is {number(reward.value, 3)}"
    if reward is not None and evidence.get("from_own_start"):
        to = f"by an implicit reward of {number(-reward.value, 3)} from its own start"
        by = by or "rejected fell"
    whose = "" if by or not to else "rejected: "
    return speaks(f"{whose}{', '.join(x for x in (by, to) if x)}{caveat(ctx, t)}", **evidence)


BELOW_GAIN = Condition(
    "the loss is a sigmoid, and the reward of rejected is -5 or less",
    lambda s, t: (
        "sigmoid" in s.types
        and ((s.findings.get("DVG002", {}).get("rejected_reward") or {}).get("value") or 0.0) <= t["collapse_reward"]
    ),
)

_REFERENCE = -100.0 + noise(30), -100.0 + noise(30, seed=1)

register(
    Check(
        code="DVG002",
        title="rejected collapse",
        says="The rejected responses lost far more probability than the loss needs: by a third of their negative "
        "log-prob, or to an implicit reward of -5, and they make at least half of the margin.",
        why="Below a reward of -5 the sigmoid loss gains nothing more, so the push goes on for no use. Responses that "
        "resemble the rejected ones, often the chosen ones too, are pushed down with them, and the mass goes to "
        "responses that no pair shows.",
        needs="pairs at two steps; or rewards/rejected or logps/rejected",
        severity="warning",
        evidence={
            "source": "what the numbers come from: pairs, or means of a split",
            "rejected_change": "change of rejected's log-prob, nats per response (as logged), with its interval",
            "margin_change": "pairs: change of chosen minus rejected, nats per response",
            "margin": "means: rewards/margins at the end",
            "from_own_start": "means: the reference is wrong (DVG007): rewards and margin count from the first rows",
            "rejected_reward": "implicit reward of rejected at the end, beta times nats; null without beta",
            "relative_rise_of_rejected_nll": "rise of rejected's negative log-prob as a share of its start",
            "share_of_margin": "fall of rejected as a share of the margin",
            "pairs_that_fell_most": "pair_ids with the largest falls of rejected",
        },
        false_alarms=(
            "rejected responses that are plainly broken (foreign language, garbage): their fall costs nothing",
            "a high beta scales every reward: read the relative rise instead",
        ),
        bad=Example(
            "Rejected falls by 80 of 100 nats, which makes 80 of the 82 nats of the margin.",
            pairs={0: _REFERENCE, 9: (_REFERENCE[0] + 2, _REFERENCE[1] - 80 + noise(30, 1.0, 2))},
            reference=_REFERENCE,
            tokens=(60, 60),
        ),
        good=Example(
            "Rejected falls by 10 of 100 nats.",
            pairs={0: _REFERENCE, 9: (_REFERENCE[0] + 2, _REFERENCE[1] - 10)},
            reference=_REFERENCE,
            tokens=(60, 60),
        ),
        try_next=(
            Advice("stop earlier: below a reward of -5 the sigmoid loss gains nothing", (*LOSS_TAUGHT, BELOW_GAIN)),
            RAISE_BETA,
            Advice("use a loss that bounds the rejected side (ipo, apo_zero)", (*LOSS_TAUGHT, UNBOUNDED)),
        ),
        sources=("3D-properties, arXiv 2406.07327",),
        since="0.1.0",
        function=rejected_collapse,
        reads=("confidence", "collapse_reward", "collapse_relative", "collapse_share_of_margin"),
    )
)
