"""DVG007: before any training the policy is its reference, so margins are 0 and the loss is ln 2 (sigmoid)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import WORST, Check, Missing, Outcome, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import SIGMOID, Example
from dpo_diag.diagnosis.checks.shared.first_rows import early_excess, early_noise, movement, n_early
from dpo_diag.diagnosis.checks.shared.logged import Series
from dpo_diag.diagnosis.checks.shared.plausible import multiple_of_start
from dpo_diag.stats import LEAST_FOR_T, FloatArray
from dpo_diag.text import number
from dpo_diag.thresholds import Thresholds


def mismatch(ctx: CheckContext, t: Thresholds) -> Outcome:
    """The first source that speaks decides; else the first that is silent, else the first that answers."""
    start, proof = ctx.info.reference.start, _of_proof(ctx)
    sources = [proof, _of_pairs(ctx, t), _of_evaluation(ctx, t)]
    if proof is None or proof.outcome == "speaks":
        sources.append(_of_training(ctx, t))  # how far the first rows stand is no question where the start was seen
    outcomes = [o for o in sources if o is not None]
    if not outcomes:
        raise Missing("the start is not recorded: no step 0, no early training rows with loss or rewards")
    order = ("speaks", "silent", "not_applicable")
    found = min(outcomes, key=lambda o: order.index(o.outcome))
    if found.outcome == "speaks" and found.severity is None and start is not None and start.expected is False:
        reason = f"{found.reason}; {start.why}, so what counts is the change since the start"
        return replace(found, reason=reason, severity="info", evidence={**found.evidence, "start": vars(start)})
    return found


def _of_proof(ctx: CheckContext) -> Outcome | None:
    """What the trainer saw on a few pairs before the first step, where policy and reference must agree."""
    start = ctx.info.reference.start
    if start is None or not start.expected:
        return None
    if start.agrees:
        return silent("before the first step the policy equalled its reference", start=vars(start))
    return speaks(
        f"before the first step the policy differed from its reference by {number(start.mean_gap)} nats per response, "
        f"but {start.why}: {start.cause}",
        start=vars(start),
    )


def _rounding(ctx: CheckContext) -> float:
    """Nats per response that rounding can do, as the trainer found where the start agreed; 0 where it did not look."""
    start = ctx.info.reference.start
    return start.tolerance or 0.0 if start is not None and start.agrees else 0.0


def _of_pairs(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    """Step 0 of any split with reference rows."""
    rows = ctx.pairs.at_start
    if rows.empty:
        return None
    ratio = rows["gap"]
    evidence: dict[str, Any] = {"mean_abs_log_ratio_at_step_0": float(ratio.mean()), "responses": len(ratio)}
    if ratio.mean() <= max(t["reference_tolerance_nats"], _rounding(ctx)):
        return silent("at step 0 the policy equals its reference", **evidence)
    worst = ratio.sort_values(ascending=False).index[:WORST]
    return speaks(
        f"at step 0 the policy differs from its reference by {ratio.mean():.3g} nats per response: margins do not "
        "start at 0",
        **evidence,
        pair_ids=list(rows.loc[worst, "pair_id"]),
    )


def _of_evaluation(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    """An evaluation at step 0: its rewards must be 0."""
    if ctx.reference_free or not ctx.info.steps_are_stated:
        return None
    at_start: dict[str, float] = {}
    for split in ctx.logged.fixed_splits:
        for name in ("rewards/margins", "rewards/chosen", "rewards/rejected"):
            series = ctx.logged.find(name, split)
            if series is None or series.steps[0] != 0:
                continue
            value = float(series.values[0])
            if abs(value) > max(t["reference_tolerance_reward"], (ctx.info.beta or 0.0) * _rounding(ctx)):
                evidence: dict[str, Any] = {"split": split, "series": name, "value_at_step_0": value}
                return speaks(f"{name} of {split} is {value:.3g} at step 0, not 0", **evidence)
            at_start[f"{split}:{name}"] = value
    return silent("at step 0 the rewards of the fixed sets are 0", rewards_at_step_0=at_start) if at_start else None


def _of_training(ctx: CheckContext, t: Thresholds) -> Outcome | None:
    """The first training rows: how far from the reference, beyond what the first steps can have done."""
    if ctx.window.first is not None and ctx.window.first > 0:
        return None
    for split in ctx.logged.train_splits:
        loss, chosen = ctx.logged.find("loss", split), ctx.logged.find("rewards/chosen", split)
        if loss is None and chosen is None:
            continue
        if ctx.reference_free:
            raise Missing("the rewards hold no reference (they are beta times the log-prob itself)")
        logged = [s for s in (loss, chosen) if s is not None]
        first_step = min(float(s.steps[0]) for s in logged)
        evidence: dict[str, Any] = {"split": split}
        if ctx.info.steps_are_stated:
            evidence["first_step"] = first_step
        at_once = _nothing_moved(ctx, split, first_step, evidence)
        late = not at_once and _may_have_learned(ctx, logged[0], loss, first_step, t)
        learned = not at_once and loss is not None and _early_loss(loss, t) < ctx.start.value
        learns = learned or (not at_once and loss is not None and _early_loss(loss, t, half=True) < ctx.start.value)
        return _of_rewards(ctx, split, at_once, late, (learned, learns), t, evidence) or _of_loss(
            ctx, split, loss, at_once, late, t, evidence
        )
    return None


def _nothing_moved(ctx: CheckContext, split: str, first_step: float, evidence: dict[str, Any]) -> bool:
    """Whether the first row is measured before training can have moved anything: step 1, or no gradient so far."""
    grads = ctx.logged.find("grad_norm", split, LEAST_FOR_T)
    if grads is not None and float(np.abs(grads.values[:LEAST_FOR_T]).max()) == 0.0:
        evidence["gradient"] = "0 in the first rows: nothing can have moved"
        return True
    return ctx.info.steps_are_stated and first_step <= 1


def _may_have_learned(ctx: CheckContext, rows: Series, loss: Series | None, first_step: float, t: Thresholds) -> bool:
    """Whether what the first row shows can have been learned: its step is late, or not stated, and its loss lies below
    the start; or its step is late and more than two of the rows' distances: their moves do not bound its own."""
    if ctx.info.steps_are_stated:
        if first_step <= t["reference_early_steps"]:
            return False
        if len(rows) < LEAST_FOR_T or first_step > 2 * float(np.median(np.diff(rows.steps))):
            return True
    return loss is None or not _early_loss(loss, t) >= ctx.start.value - t["reference_tolerance_loss"]


def _early_loss(loss: Series, t: Thresholds, half: bool = False) -> float:
    """Where the loss of the first rows, or of their second half, lies; of one batch alone it says little."""
    rows = loss.values[: n_early(t)]
    return float(np.median(rows[rows.size // 2 :] if half else rows))


def _of_rewards(
    ctx: CheckContext,
    split: str,
    at_once: bool,
    late: bool,
    learning: tuple[bool, bool],
    t: Thresholds,
    evidence: dict[str, Any],
) -> Outcome | None:
    """`learning`: whether the first rows' loss lies below its start, and whether it does by their second half."""
    learned, learns = learning
    logged = {name: ctx.logged.find(name, split) for name in ("rewards/chosen", "rewards/rejected")}
    rewards = {name: series.values for name, series in logged.items() if series is not None}
    moved = {name: movement(values, at_once, t) for name, values in rewards.items()}
    for name, values in rewards.items():
        # The first steps of a run that learns fast move both sides alike, and one of them soon no more.
        first, allowed = float(values[0]), max(moved.values()) if learned else moved[name]
        evidence |= {f"first_{name}": first, f"allowed_{name}": allowed}
        if not late and abs(first) > max(t["reference_tolerance_reward"], allowed):
            return speaks(
                f"{name} is {first:.3g} in the first row{_at(evidence)}, further from 0 than the "
                "steps after it move: the policy did not start at its reference",
                **evidence,
            )
    for name, values in rewards.items():
        level = float(values[: n_early(t)].mean())
        if not (late or learns) and values.size > n_early(t) and abs(level) > _level_allowed(values, t):
            return speaks(
                f"{name} is {level:.3g} over the first {n_early(t)} rows, whose loss lies above its start, and hardly "
                "moves: the policy did not start at its reference",
                **evidence,
            )
    return None


def _level_allowed(values: FloatArray, t: Thresholds) -> float:
    """How far from 0 the first rows' mean may lie: a multiple of their own drift, and of their noise."""
    rows = n_early(t)
    half = rows // 2
    drift = abs(float(values[half:rows].mean() - values[:half].mean()))
    noise = early_noise(values, t) / math.sqrt(rows)
    least = t["reference_tolerance_reward"]
    return max(least, t["reference_movement_factor"] * drift, t["reference_movement_sds"] * noise)


def _at(evidence: dict[str, Any]) -> str:
    return f" (step {evidence['first_step']:.0f})" if "first_step" in evidence else ""


def _of_loss(
    ctx: CheckContext,
    split: str,
    loss: Series | None,
    at_once: bool,
    late: bool,
    t: Thresholds,
    evidence: dict[str, Any],
) -> Outcome:
    if loss is None:
        return silent("the first rewards are near 0", **evidence)
    start, tolerance = ctx.start, t["reference_tolerance_loss"]
    if not math.isfinite(start.value):
        return cannot_tell(start.reason, **evidence)
    first = preference = float(loss.values[0])
    nll = ctx.logged.find("nll_loss", split)
    if nll is not None:
        evidence["first_nll_loss"] = float(nll.values[0])
        # The logged loss may or may not include the NLL term, weight 1: whichever lies nearer to the start.
        preference = min((first, first - float(nll.values[0])), key=lambda x: abs(x - start.value))
    elif (k := multiple_of_start(first, start.value, t)) is not None:
        return _of_multiple(ctx, first, k, evidence, t)
    elif start.known:
        above = early_excess(loss.values, start.value, t)
        if above is not None:
            evidence["early_loss_above_start"] = above
            if above.low > tolerance:
                return speaks(
                    f"the first rows' loss lies {above} above {start.value:.4f}, where a run from its reference starts",
                    **evidence,
                )
    away, allowed = preference - start.value, movement(loss.values, at_once, t)
    evidence |= {
        "first_loss": first, "expected_first_loss": start.value, "expected_because": start.reason,
        "left_after_nll": away, "allowed_loss": allowed,
    }  # fmt: skip
    if late and away < 0:
        if "first_step" in evidence:
            return silent(
                f"the first row is from step {evidence['first_step']:.0f}: it may have learned by then", **evidence
            )
        if abs(away) > max(tolerance, allowed):
            return cannot_tell(
                "the log does not say how many steps lie before its first row: it may have learned by then "
                "(--logging-steps N says it)",
                **evidence,
            )
    if abs(away) <= max(tolerance, allowed):
        return silent("the first loss is that of a policy at its reference", **evidence)
    # Both rewards, which move in proportion where a loss near its floor no longer does, were found in order above.
    both = nll is None and {"first_rewards/chosen", "first_rewards/rejected"} <= set(evidence)
    in_order = both and away < 0 and math.isclose(start.value, math.log(2))
    if start.known and not in_order:
        return speaks(f"the first loss is {first:.4f}, not {start.value:.4f} ({start.reason})", **evidence)
    if ctx.logged.find("rewards/chosen", split) is None:
        return cannot_tell(
            f"the first loss is {first:.4f}, not ln 2, but neither the loss type nor rewards are known", **evidence
        )
    margins = ctx.logged.find("rewards/margins", split)
    if margins is not None and abs(float(margins.values[0])) <= t["reference_tolerance_reward"]:
        if ctx.logged.find("kl", split) is not None:
            return cannot_tell(
                f"the first loss is {first:.4f} with rewards near 0, and kl is logged, as KTO does: --loss kto says so",
                **evidence,
            )
        return cannot_tell(
            f"the first loss is {first:.4f} with rewards near 0: another loss than plain sigmoid, or a term added to "
            "it",
            **evidence,
        )
    return silent("the first rewards are within what the first steps move", **evidence)


def _of_multiple(ctx: CheckContext, first: float, k: int, evidence: dict[str, Any], t: Thresholds) -> Outcome:
    """A first loss of k starts: what it is, and the other readings that the run leaves."""
    start = ctx.start
    evidence |= {
        "first_loss": first, "expected_first_loss": start.value, "expected_because": start.reason,
        "multiple_of_start": k,
    }  # fmt: skip
    rewards = [evidence[name] for name in evidence if name.startswith("first_rewards/")]
    at_reference = bool(rewards) and max(map(abs, rewards)) <= t["reference_tolerance_reward"]
    name = "ln 2" if math.isclose(start.value, math.log(2)) else number(start.value)
    accumulated = ctx.info.training.gradient_accumulation_steps
    source = "gradient accumulation, as this run's settings say" if accumulated == k else "gradient accumulation"
    found = f"the first loss is {number(first)} = {first / start.value:.2f} x {name}"
    summed = f"a sum over {k} micro-batches ({source}) or processes, not their mean"
    if at_reference:
        other = "" if start.known else f", unless a term of {number(first - start.value)} is added to it"
        reason = (
            f"{found}: the first rewards are near 0, so the policy starts at its reference, and it is {summed}{other}"
        )
    else:
        reason = (
            f"{found}: most likely {summed}; no rewards of that row are logged that could rule out a wrong reference"
        )
        if not start.known:
            return cannot_tell(reason, **evidence)
    advice = f"divide the logged loss by {k}; if the gradient is scaled too, the rate acts {k} times as large"
    return replace(speaks(reason, "warning", **evidence), try_next=(advice,))


register(
    Check(
        code="DVG007",
        title="reference mismatch",
        says="At the start the policy is not its reference: log-ratios or rewards away from 0 at step 0, or a first "
        "training loss away from the loss's value at the reference (ln 2 = 0.6931 for sigmoid). A first loss near a "
        "whole multiple of that value is named as a sum over micro-batches or processes, a warning.",
        why="DPO measures everything against the reference. If it is another model than the one training starts from "
        "(the base instead of the SFT model, another dtype, an adapter left on or off), rewards, margins and accuracy "
        "mean something else, and the loss can fall to 0 with nothing learned.",
        needs="step 0 of pairs or of an evaluation, or the first training rows",
        severity="error",
        evidence={
            "start": "training: what was seen before the first step (run.json, reference.start)",
            "mean_abs_log_ratio_at_step_0": "pairs: mean |log-ratio| at step 0, nats per response",
            "responses": "pairs: responses behind it",
            "pair_ids": "pairs with the largest log-ratios",
            "series": "evaluation: the reward that is not 0",
            "value_at_step_0": "evaluation: its value",
            "rewards_at_step_0": "evaluation: split:metric -> its value",
            "split": "the split that was read",
            "first_step": "training: step of the first row; absent where the log states no steps",
            "gradient": "training: why nothing can have moved before the first row",
            "first_rewards/chosen": "training: chosen's reward in the first row",
            "allowed_rewards/chosen": "what the first steps can have moved it",
            "first_rewards/rejected": "training: rejected's reward in the first row",
            "allowed_rewards/rejected": "what the first steps can have moved it",
            "first_nll_loss": "training: NLL term in the first row, nats",
            "early_loss_above_start": "training: mean loss of the first rows (a quarter) less the expected start",
            "first_loss": "training: the loss in the first row",
            "expected_first_loss": "the loss of a policy that equals its reference",
            "expected_because": "where that value comes from",
            "multiple_of_start": "the first loss is this many times that value: a sum over micro-batches or processes",
            "left_after_nll": "first loss less the NLL term, less the expected start",
            "allowed_loss": "what the first steps can have moved the loss",
        },
        false_alarms=(
            "an NLL term that is in the loss but not logged as nll_loss",
            "a loss with another start than its name says (label smoothing, an f-divergence) that run.json does not "
            "record",
            "a first logged row after many steps at a high rate",
        ),
        bad=Example(
            "The first sigmoid loss is 0.733, not 0.693: the reference was loaded from disk, not copied.",
            train={"loss": [0.733, 0.73, 0.72, 0.70, 0.68, 0.66, 0.64]},
            every=1,
            run={"loss": SIGMOID},
        ),
        good=Example(
            "The first sigmoid loss is 0.693.",
            train={"loss": [0.6931, 0.69, 0.685, 0.67, 0.66, 0.64, 0.63]},
            every=1,
            run={"loss": SIGMOID},
        ),
        try_next=(
            "check that the reference is the very model that training starts from (dtype, adapter, dropout included)",
            "pass a frozen copy as ref_model, or precompute its log-probs",
        ),
        sources=(
            "huggingface/trl tests: the first sigmoid loss is 0.6931",
            "hiyouga/LlamaFactory issue 8974; huggingface/trl issues 6591, 6043",
        ),
        since="0.1.0",
        function=mismatch,
        reads=(
            "confidence",
            "reference_tolerance_nats",
            "reference_tolerance_reward",
            "reference_tolerance_loss",
            "reference_movement_factor",
            "reference_early_rows",
            "reference_noise_rows",
            "reference_at_start_sds",
            "reference_movement_sds",
            "reference_early_steps",
            "reference_multiple_share",
            "implausible_most_summed",
        ),
    )
)
