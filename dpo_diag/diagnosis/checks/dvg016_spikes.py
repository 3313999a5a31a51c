"""DVG016: single rows of the training loss far above what came before and after (median and MAD)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import LOWER_RATE, NOT_CLIPPED, SOUND, TRAINED, Advice
from dpo_diag.diagnosis.checks.shared.check import LISTED, WORST, Check, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.stats import LEAST_FOR_T, NORMAL_MAD, FloatArray
from dpo_diag.thresholds import Thresholds

ROUNDING = 1e-6
"""A jump below this is the rounding of the log."""


def spikes(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Names the rows, and the gradient norms there."""
    loss = ctx.logged.training("loss", int(t["spike_min_rows"]))
    rows = spike_rows(loss.values, t)
    at = loss.steps[rows]
    evidence: dict[str, Any] = {
        "rows": len(loss), "steps": at[:LISTED], "losses": loss.values[rows][:LISTED], "count": len(rows),
    }  # fmt: skip
    grads = ctx.logged.find("grad_norm", loss.split)
    if grads is not None and len(rows):
        evidence["grad_norm_there"] = grads.values[np.isin(grads.steps, at)][:LISTED]
        evidence["median_grad_norm"] = float(np.median(grads.values))
    if len(rows):
        where = ", ".join(f"{step:.0f}" for step in at[:WORST])
        word = ctx.info.step_word if len(rows) == 1 else f"{ctx.info.step_word}s"
        return speaks(f"the loss spikes at {len(rows)} of {len(loss)} rows ({word} {where})", **evidence)
    return silent("no row stands out from its neighbours beyond the noise", **evidence)


def spike_rows(values: FloatArray, t: Thresholds) -> npt.NDArray[np.int64]:
    """Indices of rows above the medians of both their neighbourhoods by `spike_mads` robust deviations.

    One-sided and two-neighboured: a loss that simply falls fast stands above what follows but not above what came
    before; a step down at an epoch's end likewise. The scale is the larger of MAD and the upper tail's own quantiles,
    because batch losses are skewed; for long logs the multiple grows with the extreme expected of as many rows.
    """
    n, w = values.size, int(t["spike_window"])
    if n < 2 * w:
        w = max(LEAST_FOR_T, n // 3)
    rows = range(n)
    # Two rows make a median that one row cannot carry.
    before = np.array([np.median(values[max(0, i - w) : i]) if i >= 2 else np.nan for i in rows])
    after = np.array([np.median(values[i + 1 : i + 1 + w]) if i + 2 < n else np.nan for i in rows])
    residual = values - _medians_around(values, w)
    centre = float(np.median(residual))
    mad = NORMAL_MAD * float(np.median(np.abs(residual - centre)))
    upper_share = t["spike_upper_quantile"]
    upper = float(np.quantile(residual, upper_share) - centre) / float(special.ndtri(upper_share))
    # The noise of a loss shrinks with it: a row is judged by the noise around it too, not by a later calm alone.
    scale = np.maximum(max(mad, upper), NORMAL_MAD * _medians_around(np.abs(residual), 3 * w))
    # The largest of n normal values exceeds this in so many logs.
    extreme = float(special.ndtri(1 - t["spike_false_logs"] / n))
    multiple = max(t["spike_mads"], t["spike_tail_factor"] * extreme)
    level = max(abs(float(np.median(values))), abs(float(np.median(values[:LEAST_FOR_T]))))
    jump = values - np.fmax(before, after)
    spike = (jump > multiple * scale) & (jump > t["spike_min_share"] * level) & (jump > ROUNDING)
    return np.flatnonzero(spike & ~np.isnan(before))


def _medians_around(values: FloatArray, w: int) -> FloatArray:
    """Median of the w rows on each side of every row, without the row itself, shape (rows,)."""
    around = [np.delete(values[max(0, i - w) : i + w + 1], min(i, w)) for i in range(values.size)]
    return np.array([np.median(rows) for rows in around])


_LOSS = 0.5 + noise(40, 0.03)
_SPIKED = np.where(np.arange(40) == 20, 2.0, _LOSS)

register(
    Check(
        code="DVG016",
        title="loss spikes",
        says="Single rows of the training loss stand far above the rows before and after them: six robust deviations "
        "and a fifth of the loss's level.",
        why="A spike is one batch: a broken pair, a burst of long responses, a step that was too large. Adam's "
        "moments keep its gradient for many steps.",
        needs="loss of the training batches at ten steps",
        severity="info",
        evidence={
            "rows": "rows of the training loss",
            "steps": "steps of the spikes",
            "losses": "the loss there",
            "count": "number of spikes",
            "grad_norm_there": "gradient norms at those steps",
            "median_grad_norm": "median gradient norm of the run",
        },
        false_alarms=("batches of one or two pairs, whose losses have heavy tails",),
        bad=Example("Forty rows around 0.5, one of them at 2.0.", train={"loss": _SPIKED}),
        good=Example("The same rows without it.", train={"loss": _LOSS}),
        try_next=(
            "look at the batch of that step",
            Advice("clip gradients at 1", (SOUND, TRAINED, NOT_CLIPPED)),
            Advice("lower the learning rate or lengthen warm-up", LOWER_RATE.when),
        ),
        sources=("what log linters look for; here without the false alarm on a fast fall",),
        since="0.1.0",
        function=spikes,
        reads=(
            "spike_mads",
            "spike_window",
            "spike_min_share",
            "spike_min_rows",
            "spike_upper_quantile",
            "spike_false_logs",
            "spike_tail_factor",
        ),
    )
)
