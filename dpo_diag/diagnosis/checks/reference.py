"""Is the start what it should be, is the accuracy what it is called: DVG007, DVG017."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats as st

from dpo_diag.diagnosis.checks.base import Missing, Outcome, Thresholds, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.stats import Interval, noise_sd


def mismatch(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG007: before any training the policy is its reference, so margins are 0 and the loss is ln 2 (sigmoid)."""
    outcomes = [o for o in (_by_pairs(ctx, t), _by_evaluation(ctx, t), _by_training(ctx, t)) if o is not None]
    if not outcomes:
        raise Missing("the start is not recorded: no step 0, no early training rows with loss or rewards")
    for wanted in ("speaks", "silent"):
        for outcome in outcomes:
            if outcome.outcome == wanted:
                return outcome
    return outcomes[0]


def _by_pairs(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    """Step 0 of any split with reference rows."""
    rows = ctx.pairs[(ctx.pairs["step"] == 0) & ctx.pairs["ref_sum_logp"].notna()]
    if rows.empty:
        return None
    ratio = (rows["sum_logp"] - rows["ref_sum_logp"]).abs()
    ratio = ratio[np.isfinite(ratio)]
    evidence: dict[str, Any] = {"mean_abs_log_ratio_at_step_0": float(ratio.mean()), "responses": len(ratio)}
    if len(ratio) and ratio.mean() > t["reference_tolerance_nats"]:
        worst = ratio.sort_values(ascending=False).index[:5]
        return speaks(
            f"at step 0 the policy differs from its reference by {ratio.mean():.3g} nats per response: margins do not "
            "start at 0",
            **evidence,
            pair_ids=list(rows.loc[worst, "pair_id"]),
        )
    return silent("at step 0 the policy equals its reference", **evidence)


def _by_evaluation(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    """An evaluation at step 0: its rewards must be 0."""
    for split in ctx.fixed_splits:
        for name in ("rewards/margins", "rewards/chosen", "rewards/rejected"):
            series = ctx.find(name, split)
            if series is None or series.steps[0] != 0 or ctx.reference_free:
                continue
            value = float(series.values[0])
            evidence: dict[str, Any] = {"split": split, "series": name, "value_at_step_0": value}
            if abs(value) > t["reference_tolerance_reward"]:
                return speaks(f"{name} of {split} is {value:.3g} at step 0, not 0", **evidence)
    return None


def _by_training(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    """The first training rows: how far from the reference, beyond what the first steps can have done."""
    if ctx.from_step is not None and ctx.from_step > 0:
        return None
    for split in ctx.train_splits:
        loss = ctx.find("loss", split)
        chosen, rejected = ctx.find("rewards/chosen", split), ctx.find("rewards/rejected", split)
        nll = ctx.find("nll_loss", split)
        if loss is None and chosen is None:
            continue
        if ctx.reference_free:
            raise Missing("the rewards hold no reference (they are beta times the log-prob itself)")
        first_step = min(float(s.steps[0]) for s in (loss, chosen) if s is not None)
        evidence: dict[str, Any] = {"split": split, "first_step": first_step}
        at_once = _nothing_moved(ctx, split, first_step, evidence)
        late = first_step > t["reference_early_steps"] and not at_once
        for name, series in (("rewards/chosen", chosen), ("rewards/rejected", rejected)):
            if series is None:
                continue
            first, allowed = float(series.values[0]), _movement(series.values, at_once, t)
            evidence |= {f"first_{name}": first, f"allowed_{name}": allowed}
            if late:
                continue
            if abs(first) > max(t["reference_tolerance_reward"], allowed):
                return speaks(
                    f"{name} is {first:.3g} in the first row (step {first_step:.0f}), further from 0 than the steps "
                    "after it move: the policy did not start at its reference",
                    **evidence,
                )
        if loss is None:
            return silent("the first rewards are near 0", **evidence)
        start = ctx.start
        if not math.isfinite(start.value):
            return cannot_tell(start.reason, **evidence)
        first_loss = float(loss.values[0])
        explained = first_loss
        if nll is not None:
            explained = _without_nll(first_loss, float(nll.values[0]), start.value)
            evidence["first_nll_loss"] = float(nll.values[0])
        above = _early_excess(loss.values, start.value, t) if nll is None and start.known else None
        if above is not None:
            evidence["early_loss_above_start"] = above
            if above.low > t["reference_tolerance_loss"]:
                return speaks(
                    f"the first rows' loss lies {above} above {start.value:.4f}, where a run from its reference starts",
                    **evidence,
                )
        away, allowed = explained - start.value, _movement(loss.values, at_once, t)
        evidence |= {
            "first_loss": first_loss, "expected_first_loss": start.value, "expected_because": start.reason,
            "left_after_nll": away, "allowed_loss": allowed,
        }  # fmt: skip
        if late and away < 0:
            return silent(f"the first row stands at step {first_step:.0f}: it may have learned by then", **evidence)
        if abs(away) <= max(t["reference_tolerance_loss"], allowed):
            return silent("the first loss is that of a policy at its reference", **evidence)
        if start.known:
            return speaks(f"the first loss is {first_loss:.4f}, not {start.value:.4f} ({start.reason})", **evidence)
        if chosen is not None:
            margins = ctx.find("rewards/margins", split)
            small = margins is not None and abs(float(margins.values[0])) <= t["reference_tolerance_reward"]
            if small:
                return cannot_tell(
                    f"the first loss is {first_loss:.4f} with rewards near 0: another loss than plain sigmoid, or a "
                    "term added to it",
                    **evidence,
                )
            return silent("the first rewards are within what the first steps move", **evidence)
        return cannot_tell(
            f"the first loss is {first_loss:.4f}, not ln 2, but neither the loss type nor rewards are known",
            **evidence,
        )
    return None


def _nothing_moved(ctx: CheckContext, split: str, first_step: float, evidence: dict[str, Any]) -> bool:
    """Whether the first row is measured before training can have moved anything: step 1, or no gradient so far."""
    grads = ctx.find("grad_norm", split)
    if grads is not None and len(grads) >= 3 and float(np.abs(grads.values[:3]).max()) == 0.0:
        evidence["gradient"] = "0 in the first rows: nothing can have moved"
        return True
    return first_step <= 1


def _movement(values: Any, at_once: bool, t: Thresholds) -> float:
    """How far the first row may stand from the reference: a multiple of what the next rows move, and of their noise."""
    if at_once:
        return 0.0
    early = np.asarray(values, dtype=np.float64)[:6]
    if early.size < 3:
        return math.inf
    step = float(np.abs(np.diff(early)).max())
    noise = noise_sd(np.asarray(values, dtype=np.float64)[:20])
    return max(t["reference_movement_factor"] * step, 3 * (noise if math.isfinite(noise) else 0.0))


def _early_excess(values: Any, start: float, t: Thresholds) -> Interval | None:
    """How far the first quarter of the loss stands above the start, where it can only have begun there; else None.

    A run that leaves its reference and then diverges begins at the start (its first row is near it, its early rows
    rise): both are excluded. A run that learns stands below.
    """
    x = np.asarray(values, dtype=np.float64)
    early = x[: max(6, x.size // 4)]
    if early.size < 6:
        return None
    k, sd = early.size // 2, noise_sd(early)
    half = float(st.t.ppf(0.5 + t["confidence"] / 2, early.size - 1) * sd / math.sqrt(early.size))
    excess = float(early.mean()) - start
    rising = float(early[k:].mean() - early[:k].mean()) > sd * math.sqrt(2 / k)
    at_start = abs(float(early[0]) - start) <= max(0.25 * sd, t["reference_tolerance_loss"])
    if rising or at_start:
        return None
    return Interval(excess, excess - half, excess + half, int(early.size))


def _without_nll(first: float, nll: float, start: float) -> float:
    """The preference part of a loss that may or may not include the NLL term, weight 1: whichever lies nearer."""
    return min((first, first - nll), key=lambda x: abs(x - start))


def accuracy(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG017: the logged accuracy compares log-probs and ignores the reference, but is read as reward accuracy."""
    if ctx.reference_free:
        raise Missing("this loss has no reference, so both accuracies are one")
    logged = None
    for split in ctx.fixed_splits:
        logged = ctx.find("rewards/accuracies", split)
        if logged is not None:
            break
    pairs = ctx.maybe(ctx.change)
    if pairs is not None:
        steps = ctx.pair_steps()
        frame = pairs[1]
        if frame[["ref_c", "ref_r"]].notna().to_numpy().all():
            a, b = ctx.ratios(frame)
            with_reference = float((a > b).mean())
            without = float((frame["s_c"] > frame["s_r"]).mean())
            evidence: dict[str, Any] = {
                "reward_accuracy": with_reference, "accuracy_without_reference": without, "pairs": len(frame),
                "step": steps[-1],
            }  # fmt: skip
            split = ctx.pair_split()
            logged = ctx.find("rewards/accuracies", split)
            if logged is None:
                return silent("no accuracy is logged beside the pairs; both kinds are in the evidence", **evidence)
            value = float(logged.values[-1]) if logged.steps[-1] == steps[-1] else math.nan
            evidence |= {"logged": value, "logged_as": logged.name}
            near = t["accuracy_tolerance"]
            if abs(with_reference - without) <= 2 * near or not math.isfinite(value):
                return silent("the two accuracies agree, or were not logged at this step", **evidence)
            if abs(value - without) <= near < abs(value - with_reference):
                return speaks(
                    f"the logged accuracy {value:.3f} is the one without the reference ({without:.3f}); reward "
                    f"accuracy is {with_reference:.3f}",
                    **evidence,
                )
            return silent("the logged accuracy is reward accuracy", **evidence)
    for split in [*ctx.fixed_splits, *ctx.train_splits]:
        logged_rows = ctx.wide_rows(["rewards/chosen", "rewards/rejected", "rewards/accuracies"], split)
        if logged_rows is None:
            continue
        gains = logged_rows.iloc[:, 0].to_numpy() - logged_rows.iloc[:, 1].to_numpy()
        values = logged_rows.iloc[:, 2].to_numpy()
        zero = np.flatnonzero((logged_rows.iloc[:, :2] == 0).all(axis=1).to_numpy())
        if not zero.size:
            if gains.size < 10 or float(np.std(gains)) == 0.0:
                continue
            against = int(((np.abs(gains) > np.std(gains)) & (np.sign(gains) != np.sign(values - 0.5))).sum())
            if against > 0.5 * gains.size:
                return speaks("margins and accuracy point in opposite directions", rows=against, of=gains.size)
            return silent("accuracy and margins are consistent in sign", rows=gains.size)
        value = float(values[zero[0]])
        evidence = {"split": split, "accuracy_at_zero_margin": value, "step": float(logged_rows.index[zero[0]])}
        if min(abs(value), abs(value - 0.5)) > t["accuracy_tolerance"]:
            return speaks(
                f"with all rewards 0 the accuracy is {value:.3f}: it compares log-probs, not rewards", **evidence
            )
        return silent("with all rewards 0 the accuracy is that of ties", **evidence)
    raise Missing("needs pairs with reference sums, or rewards beside an accuracy")
