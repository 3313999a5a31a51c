"""DVG012: the mass moves to the model's own greedy tokens while both sides fall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import LOSS_TAUGHT, SFT_TERM, Advice
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, cannot_tell, ratio, silent, speaks
from dpo_diag.diagnosis.checks.shared.chosen_means import chosen_series
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.ends import LEAST_ROWS, ends_of
from dpo_diag.records.metrics import quadrants
from dpo_diag.records.schemas import SIDES
from dpo_diag.stats import Interval
from dpo_diag.text import by, percent
from dpo_diag.thresholds import Thresholds

SIGNS = {"entropy": "entropy_sum", "greedy_logp": "greedy_logp_sum"}
"""Sign of squeezing -> its column in the pair records; entropy falls, the greedy log-prob rises."""

WORDS = {"entropy": "the entropy", "greedy_logp": "the log-prob of its own first choices"}


def squeezing(ctx: CheckContext, t: Thresholds) -> Outcome:
    """From pairs, else from logged means."""
    change = ctx.maybe(ctx.pairs.change)
    if change is not None:
        outcome = _of_pairs(*change, ctx.pairs.intervals(t), t)
        if outcome is not None:
            return outcome
    for split in ctx.logged.splits:
        outcome = _of_means(ctx, split, t)
        if outcome is not None:
            return outcome
    raise Missing("neither entropy nor greedy log-prob is recorded beside both sides' log-probs")


def _of_pairs(before: pd.DataFrame, after: pd.DataFrame, over_pairs: PairIntervals, t: Thresholds) -> Outcome | None:
    per_token = {name: _change_per_token(before, after, column, over_pairs) for name, column in SIGNS.items()}
    known = {name: interval for name, interval in per_token.items() if interval is not None}
    if not known:
        return None
    a, b = ((after[f"{side}_sum_logp"] - before[f"{side}_sum_logp"]).to_numpy() for side in SIDES)
    chosen, rejected = over_pairs.mean(a, after.index), over_pairs.mean(b, after.index)
    evidence: dict[str, Any] = {
        "chosen_change": chosen, "rejected_change": rejected, "unit": "nats per response",
        **{f"{name}_change_per_token": interval for name, interval in known.items()},
        "both_fell": quadrants(a, b).both_fell,
    }  # fmt: skip
    if not (chosen.below and rejected.below and -chosen.value >= t["displacement_min_nats"]):
        return silent("the two sides did not both fall", **evidence)
    return _judge(known, t, evidence)


def _change_per_token(
    before: pd.DataFrame, after: pd.DataFrame, column: str, over_pairs: PairIntervals
) -> Interval | None:
    """Change per token of a per-response sum, mean of both sides; None where it was not recorded."""
    changes = [(after[f"{s}_{column}"] - before[f"{s}_{column}"]) / after[f"{s}_n_tokens"] for s in SIDES]
    if any(change.isna().all() for change in changes):
        return None
    return over_pairs.mean(np.mean([change.to_numpy() for change in changes], axis=0), after.index)


def _of_means(ctx: CheckContext, split: str, t: Thresholds) -> Outcome | None:
    entropy, chosen = ctx.logged.find("entropy", split), chosen_series(ctx, split)
    rejected = ctx.logged.find("rewards/rejected", split) or ctx.logged.find("logps/rejected", split)
    if entropy is None or chosen is None or rejected is None:
        return None
    if min(len(s.values) for s in (entropy, chosen, rejected)) < LEAST_ROWS:
        return None
    of_entropy, of_chosen, of_rejected = (ends_of(s.values, level=t["confidence"]) for s in (entropy, chosen, rejected))
    known = {"entropy": of_entropy.change}
    greedy = ctx.logged.find("greedy_logp/chosen", split)
    of_greedy = None if greedy is None else greedy.ends(t["confidence"])
    if of_greedy is not None:
        known["greedy_logp"] = of_greedy.change
    evidence: dict[str, Any] = {
        "source": f"means of {split}", "chosen_change": of_chosen.change, "rejected_change": of_rejected.change,
        **{f"{name}_change": interval for name, interval in known.items()},
    }  # fmt: skip
    if not (of_chosen.change.below and of_rejected.change.below):
        return silent("the two sides did not both fall beyond noise", **evidence)
    if of_greedy is not None:
        return _judge(known, t, evidence)
    # The unit of a logged entropy is not sure, so it is judged as a share of its start.
    fall = ratio(-of_entropy.change.value, abs(of_entropy.start)) if of_entropy.change.below else 0.0
    if fall >= t["squeezing_min_entropy_share"]:
        return speaks(f"both sides fell, and the entropy fell by {percent(fall)} of its start", **evidence)
    return silent("the entropy did not fall", **evidence)


def _judge(known: Mapping[str, Interval], t: Thresholds, evidence: Mapping[str, Any]) -> Outcome:
    least = t["squeezing_min_nats_per_token"]
    towards = {name: known[name].scaled(-1.0 if name == "entropy" else 1.0) for name in known}
    if all(interval.above and interval.value >= least for interval in towards.values()):
        moves = " and ".join(f"{WORDS[name]} {by(interval.value)}" for name, interval in known.items())
        return speaks(f"both sides fell while {moves} nats per token: the model is surer of its own choice", **evidence)
    if any(_unclear(interval, least) for interval in towards.values()):
        return cannot_tell("entropy or greedy log-prob changed inside the noise", **evidence)
    return silent("both sides fell, but not in favour of the model's own greedy tokens", **evidence)


def _unclear(interval: Interval, least: float) -> bool:
    """Whether an interval neither excludes 0 nor a change of `least` in one direction."""
    return not (interval.above or interval.below) and (interval.low < -least or interval.high > least)


_CHOSEN, _REJECTED = -12 + noise(30, 0.1), -16 + noise(30, 0.1, 1)


def _example(shows: str, entropy: float, greedy: float) -> Example:
    """Both sides fall; chosen's entropy and greedy log-prob change by so many nats per token."""
    return Example(
        shows,
        pairs={0: ([-10.0] * 30, -10.0), 5: (_CHOSEN, _REJECTED)},
        columns={
            "entropy_sum": {0: (13.0, 13.0), 5: (13.0 + 10 * entropy + noise(30, 0.05, 3), 13.0)},
            "greedy_logp_sum": {0: (-6.0, -6.0), 5: (-6.0 + 10 * greedy + noise(30, 0.05, 4), -6.0)},
        },
    )


register(
    Check(
        code="DVG012",
        title="squeezing",
        says="Both sides fell while the entropy fell or the log-prob of the model's own greedy tokens rose: the "
        "probability went to what the model would have written anyway.",
        why="Pushing down an unlikely response moves its mass to the likeliest tokens (Ren and Sutherland). The model "
        "gets surer of its own habits, right or wrong: short, repeated answers are typical.",
        needs="entropy or greedy log-prob beside both sides' log-probs at two steps",
        severity="warning",
        evidence={
            "source": "means: the split that was read",
            "chosen_change": "change of chosen's log-prob, nats per response (or as logged), with its interval",
            "rejected_change": "the same of rejected",
            "unit": "pairs: nats per response",
            "entropy_change_per_token": "pairs: change of the entropy, nats per token, mean of both sides",
            "greedy_logp_change_per_token": "pairs: change of the largest log-prob, nats per token, mean of both sides",
            "entropy_change": "means: change of the logged entropy",
            "greedy_logp_change": "means: change of the greedy log-prob of chosen",
            "both_fell": "pairs: share of pairs in which both sides fell",
        },
        false_alarms=("the greedy answer is right: a task score that did not fall says so (DVG018)",),
        bad=_example(
            "Both sides fall; per token of chosen the entropy falls by 0.2 nats, the greedy log-prob rises by 0.1.",
            entropy=-0.2,
            greedy=0.1,
        ),
        good=_example("Both sides fall, but the entropy rises.", entropy=0.2, greedy=-0.1),
        try_next=(
            Advice("fine-tune on both chosen and rejected first (Ren and Sutherland)", LOSS_TAUGHT),
            SFT_TERM,
            "compare greedy answers of both checkpoints: short, repeated ones are this",
        ),
        sources=(
            "Ren and Sutherland 2024, arXiv 2407.10490 (squeezing effect)",
            "arXiv 2410.11677 (signs of over-optimisation)",
        ),
        since="0.1.0",
        function=squeezing,
        reads=("confidence", "displacement_min_nats", "squeezing_min_nats_per_token", "squeezing_min_entropy_share"),
    )
)
