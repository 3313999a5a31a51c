"""How the chosen side changed, from the best source that a run has: pairs, a fixed set's means, training batches."""

from __future__ import annotations

import numpy as np

from dpo_diag.diagnosis.checks.shared.check import WORST, ratio
from dpo_diag.diagnosis.checks.shared.chosen_change import BEST, ChosenChange
from dpo_diag.diagnosis.checks.shared.chosen_means import of_fixed_set, of_training
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.paired import t_test
from dpo_diag.records.metrics import quadrants
from dpo_diag.stats import LEAST_FOR_T, corrected_for
from dpo_diag.thresholds import Thresholds


def chosen_changes(ctx: CheckContext, t: Thresholds) -> list[ChosenChange]:
    """Changes of the chosen side from the best source: over the whole run, and from its best step where it had one.

    Raises:
        Missing: no source knows the chosen side.
    """
    of_pairs = ctx.maybe(_of_pairs, ctx, t)
    if of_pairs:
        return of_pairs
    for split in ctx.logged.fixed_splits:
        of_means = of_fixed_set(ctx, split, t)
        if of_means:
            return of_means
    for split in ctx.logged.train_splits:
        of_batches = of_training(ctx, split, t)
        if of_batches:
            return of_batches
    raise ctx.nothing_of("rewards/chosen", "logps/chosen", "ce/chosen")


def material_falls(ctx: CheckContext, t: Thresholds) -> list[ChosenChange]:
    """The changes that are falls, material and beyond their noise."""
    return [c for c in chosen_changes(ctx, t) if c.material(t) and c.beyond_noise]


def _of_pairs(ctx: CheckContext, t: Thresholds) -> list[ChosenChange]:
    """From where the comparison begins (see `FixedPairs.steps`), and from the best step."""
    pairs = ctx.pairs
    before, after = pairs.change()
    da, db = pairs.moved(before, after)
    first_loss, last_loss = (float(np.nanmean(pairs.losses(frame))) for frame in (before, after))
    whole = ChosenChange(
        source="pairs",
        window="reference to last" if pairs.from_reference else "first to last",
        from_step=pairs.steps[0],
        to_step=pairs.own_steps[-1],
        unit="nats",
        delta=pairs.intervals(t).mean(da, after.index),
        gain=float(np.mean(da - db)),
        relative=ratio(float(-da.mean()), float(-before["chosen_sum_logp"].mean())),
        loss_fell=_known_fall(ctx, last_loss < first_loss),
        more={
            "loss": [first_loss, last_loss],
            "loss_is": pairs.loss_name,
            "quadrants": quadrants(da, db)._asdict(),
            "pairs_that_fell_most": list(after.index[np.argsort(da)[:WORST]]),
        },
    )
    from_best = _of_pairs_from_best(ctx, t)
    return [whole] if from_best is None else [whole, from_best]


def _known_fall(ctx: CheckContext, fell: bool) -> bool | None:
    """Of an unknown loss the margins say whether it can have fallen, not that it did."""
    return None if fell and ctx.info.loss is None else fell


def _of_pairs_from_best(ctx: CheckContext, t: Thresholds) -> ChosenChange | None:
    """From the step where chosen stood highest; None where that is the first or the last."""
    pairs, steps = ctx.pairs, ctx.pairs.steps
    if len(steps) < LEAST_FOR_T:
        return None
    pair_ids, chosen = pairs.chosen_along
    if len(pair_ids) < LEAST_FOR_T:
        return None
    best = int(chosen.mean(axis=1).argmax())
    if best in (0, len(steps) - 1):
        return None
    at_best, at_last = (pairs.at(steps[i]).loc[pair_ids] for i in (best, -1))
    a0, b0 = pairs.ratios(at_best)
    a1, b1 = pairs.ratios(at_last)
    losses = [float(np.nanmean(pairs.losses(frame))) for frame in (at_best, at_last)]
    fall = chosen[best] - chosen[-1]
    delta = pairs.intervals(t).mean(-fall, pair_ids)
    return ChosenChange(
        source="pairs",
        window=BEST,
        from_step=steps[best],
        to_step=pairs.own_steps[-1],
        unit="nats",
        delta=delta,
        # The best of k steps is chosen by looking: Bonferroni over the k - 1 steps it was chosen from.
        p=corrected_for(t_test(delta), len(steps) - 1),
        gain=float(np.mean((a1 - b1) - (a0 - b0))),
        relative=ratio(float(fall.mean()), float(-chosen[best].mean())),
        loss_fell=_known_fall(ctx, losses[1] < losses[0]),
        more={"loss": losses, "quadrants": quadrants(a1 - a0, b1 - b0)._asdict()},
    )
