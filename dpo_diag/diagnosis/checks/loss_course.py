"""How the loss goes along: DVG016 spikes, DVG020 divergence, DVG022 overfit onset."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats as st

from dpo_diag.diagnosis.checks.base import Missing, Outcome, Thresholds, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.series import Series
from dpo_diag.diagnosis.checks.stats import ends, mean_interval, noise_sd


def spikes(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG016: single rows of the training loss far above what came before and after (median and MAD)."""
    loss = ctx.train_series("loss", 10)
    found = spike_rows(loss.values, t)
    evidence: dict[str, Any] = {
        "rows": len(loss), "steps": loss.steps[found][:20], "losses": loss.values[found][:20], "count": len(found)
    }  # fmt: skip
    grads = ctx.find("grad_norm", loss.split)
    if grads is not None and len(found):
        at = np.isin(grads.steps, loss.steps[found])
        evidence["grad_norm_there"] = grads.values[at][:20]
        evidence["median_grad_norm"] = float(np.median(grads.values))
    if len(found):
        where = ", ".join(f"{s:.0f}" for s in loss.steps[found][:5])
        return speaks(f"the loss spikes at {len(found)} of {len(loss)} rows (steps {where})", **evidence)
    return silent("no row stands out from its neighbours beyond the noise", **evidence)


def spike_rows(values: np.ndarray, t: Thresholds) -> np.ndarray:
    """Indices of rows above the medians of both their neighbourhoods by `spike_mads` robust deviations.

    One-sided and two-neighboured: a loss that simply falls fast stands above what follows but not above what came
    before; a step down at an epoch's end likewise. The scale is the larger of MAD and the upper tail's own quantiles,
    because batch losses are skewed; for long logs the multiple grows with the extreme expected of as many rows.
    """
    x = np.asarray(values, dtype=np.float64)
    w = int(t["spike_window"])
    if x.size < 2 * w:
        w = max(3, x.size // 3)
    before = np.full(x.size, np.nan)
    after = np.full(x.size, np.nan)
    for i in range(x.size):
        if i >= 2:
            before[i] = np.median(x[max(0, i - w) : i])
        if i + 2 < x.size:
            after[i] = np.median(x[i + 1 : i + 1 + w])
    near = np.array([np.median(np.delete(x[max(0, i - w) : i + w + 1], min(i, w))) for i in range(x.size)])
    residual = x - near
    centre = float(np.median(residual))
    mad = 1.4826 * float(np.median(np.abs(residual - centre)))
    upper = float(np.quantile(residual, 0.9) - centre) / 1.2816
    # The noise of a loss shrinks with it: a row is judged by the noise around it too, not by a later calm alone.
    wide = 3 * w
    local = np.array([
        np.median(np.abs(np.delete(residual[max(0, i - wide) : i + wide + 1], min(i, wide)))) for i in range(x.size)
    ])  # fmt: skip
    scale = np.maximum(max(mad, upper), 1.4826 * local)
    extreme = float(st.norm.ppf(1 - 0.01 / x.size))
    multiple = max(t["spike_mads"], 1.5 * extreme)
    baseline = np.fmax(before, after)
    level = max(abs(float(np.median(x))), abs(float(np.median(x[:3]))))
    jump = x - baseline
    return np.flatnonzero(
        (~np.isnan(before)) & (jump > multiple * scale) & (jump > t["spike_min_share"] * level) & (jump > 1e-6)
    )


def diverged(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG020: the training loss ends well above where it started, climbed back from its minimum, or is NaN."""
    raw = None
    for split in ctx.train_splits:
        raw = ctx.maybe(lambda split=split: ctx.series("loss", split))  # type: ignore[misc]
        if raw is not None:
            break
    if raw is None:
        raise Missing("no loss of the training batches is logged")
    tail = raw.values[-max(3, len(raw) // 10) :]
    if len(raw) >= 6 and not np.isfinite(tail).any():
        return speaks("the loss is not finite at the end", steps=raw.steps[-len(tail) :], severity="error")
    loss = raw.finite
    trend = ends(loss.values, t["confidence"])
    if trend is None:
        raise Missing("fewer than six finite losses")
    start = ctx.start.value if ctx.start.known else trend.first
    evidence: dict[str, Any] = {"first": trend.first, "last": trend.last, "change": trend.delta, "start": start}
    rise = max(t["divergence_min_share"] * abs(trend.first), 1e-3)
    if trend.delta.above and trend.delta.value > rise and trend.last > start:
        return speaks(f"the loss rose from {trend.first:.3g} to {trend.last:.3g}", **evidence)
    began = abs(float(loss.values[0]) - start) <= 0.05 * abs(start)
    if ctx.start.known and began and trend.last_level.low > start + rise and trend.last > 1.3 * abs(start):
        return speaks(f"the loss left its start ({start:.3g}) and ends at {trend.last_level}", **evidence)
    k = max(3, len(loss) // 8)
    if len(loss) >= 4 * k:
        rolling = np.convolve(loss.values, np.ones(k) / k, mode="valid")
        low = int(rolling[: len(rolling) - k].argmin()) if len(rolling) > k else 0
        windows = len(loss) / k
        z = float(st.norm.ppf(1 - (1 - t["confidence"]) / (2 * windows)))
        up, half = float(rolling[-1] - rolling[low]), z * trend.sd * math.sqrt(2 / k)
        fallen = float(rolling[0] - rolling[low])
        evidence |= {"minimum": rolling[low], "minimum_step": loss.steps[low + k - 1], "rise_from_minimum": up}
        if up > half and up > rise and up > t["divergence_min_share_of_fall"] * fallen:
            return speaks(
                f"the loss climbed back from {rolling[low]:.3g} (step {loss.steps[low + k - 1]:.0f}) to "
                f"{rolling[-1]:.3g}",
                **evidence,
            )
    return silent("the loss does not end above where it was", **evidence)


def overfit(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG022: from some step on the held-out loss rises while the training loss goes on falling."""
    train = ctx.maybe(lambda: ctx.train_series("loss", 6))
    pairs = ctx.maybe(ctx.pair_split)
    if pairs is not None and not is_training_probe(pairs):
        steps = ctx.pair_steps()
        losses = [ctx.pair_loss(ctx.at(s)) for s in steps]
        if not all(np.isfinite(values).any() for values in losses):
            raise Missing("some evaluation has no finite pair loss")
        means = [float(np.nanmean(values)) for values in losses]
        best = int(np.argmin(means))
        before, after = ctx.change(steps[best], steps[-1])
        confidence = 1 - (1 - t["confidence"]) / max(1, len(steps) - 1)
        rise = mean_interval(ctx.pair_loss(after) - ctx.pair_loss(before), confidence)
        evidence: dict[str, Any] = {
            "split": pairs, "best_step": steps[best], "loss_at_best": means[best], "last_loss": means[-1], "rise": rise,
        }  # fmt: skip
        least = _least_rise(ctx, means[best], t)
        if best < len(steps) - 1 and rise.value >= least and not rise.above:
            return cannot_tell(f"the held-out loss rose by {rise} from its minimum: inside the noise", **evidence)
        if best == len(steps) - 1 or not rise.above or rise.value < least:
            return silent("the held-out loss does not rise from its minimum beyond noise", **evidence)
        return _onset(ctx, train, float(steps[best]), evidence)
    fixed = ctx.fixed_series("loss", 3)
    v = fixed.values
    best = int(v.argmin())
    up, noise = float(v[-1] - v[best]), noise_sd(v) if len(v) >= 8 else 0.0
    evidence = {"split": fixed.split, "best_step": fixed.steps[best], "loss_at_best": v[best], "last_loss": v[-1],
                "evaluations": len(v)}  # fmt: skip
    if best == len(v) - 1 or up < max(_least_rise(ctx, float(v[best]), t), 3 * noise):
        return silent("the held-out loss ends at its minimum, or no more than noise above it", **evidence)
    if len(v) - 1 - best < 2 and up < 2 * _least_rise(ctx, float(v[best]), t):
        return cannot_tell("only the last evaluation lies above the minimum", **evidence)
    return _onset(ctx, train, float(fixed.steps[best]), evidence)


def is_training_probe(split: str) -> bool:
    """A fixed set drawn from the training pairs: its loss cannot show overfitting."""
    return "train" in split or "seen" in split.replace("unseen", "")


def _least_rise(ctx: CheckContext, best: float, t: Thresholds) -> float:
    start = ctx.start.value if math.isfinite(ctx.start.value) else abs(best)
    return max(t["overfit_min_share"] * abs(best), 0.1 * t["overfit_min_share"] * start)


def _onset(ctx: CheckContext, train: Series | None, step: float, evidence: dict[str, Any]) -> Outcome:
    """Overfitting, unless the training loss rises from that step on as well."""
    if train is not None:
        before, after = train.values[train.steps <= step], train.values[train.steps > step]
        if len(before) < 3:
            # The minimum stands at the very start: compare with the loss's own start, or with the first rows.
            before = np.full(3, ctx.start.value) if ctx.start.known else train.values[:3]
        if len(after) >= 3:
            k = max(3, len(before) // 4)
            evidence["train_loss"] = [float(before[-k:].mean()), float(after[-max(3, len(after) // 4) :].mean())]
            noise = noise_sd(train.values) * math.sqrt(2 / 3)
            if evidence["train_loss"][1] > evidence["train_loss"][0] + 2 * noise:
                return silent("held-out and training loss rise together: divergence, not overfitting", **evidence)
    return speaks(
        f"the held-out loss rises from {evidence['loss_at_best']:.4g} (step {step:.0f}) to {evidence['last_loss']:.4g}",
        **evidence,
    )
