"""Where one side's log-probs stand at both ends, by what a log holds of them."""

from __future__ import annotations

import math
from typing import NamedTuple

from dpo_diag.diagnosis.checks.shared.check import ratio
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.stats import Interval
from dpo_diag.text import both_ends
from dpo_diag.thresholds import Thresholds


class Levels(NamedTuple):
    """One side's log-prob at both ends of what is compared, what it is measured in, and of batches the least fall that
    their noise leaves; NaN where it is not known."""

    start: float = math.nan
    end: float = math.nan
    unit: str = ""
    least: float = math.nan

    @property
    def relative(self) -> float:
        """Rise of the negative log-prob as a share of its start."""
        fall = self.start - self.end if math.isnan(self.least) else self.least
        return ratio(fall, -self.start) if self.start < 0 else math.nan

    def __str__(self) -> str:
        """ "fell from -0.135 to -0.507 nats per token"; "" where it is not known."""
        known = math.isfinite(self.start) and self.end < self.start
        return f"fell from {' to '.join(both_ends(self.start, self.end, 3))} {self.unit}" if known else ""


def logged_levels(ctx: CheckContext, split: str, side: str, reward: Interval, t: Thresholds) -> Levels:
    """From the reward (logps = reference + reward / beta), or from the log-probs' own course."""
    logps, beta = ctx.logged.find(f"logps/{side}", split), ctx.info.beta
    if logps is None:
        return Levels()
    if beta and not ctx.mean_logps:
        end = float(logps.values[-reward.n :].mean())
        return Levels(end - reward.value / beta, end, unit_of(ctx))
    trend = None if logps.fixed else logps.ends(t["confidence"])
    if trend is None:
        return Levels(float(logps.values[0]), float(logps.values[-1]), unit_of(ctx))
    return Levels(trend.start, trend.end, unit_of(ctx), least_fall(trend.change))


def unit_of(ctx: CheckContext) -> str:
    """What a logged log-prob is per, as far as the run says."""
    return {"sum": "nats per response", "mean": "nats per token"}.get(str(ctx.info.logps), "nats as logged")


def least_fall(moved: Interval) -> float:
    """The smallest fall that the noise of the batches leaves: their pairs differ more than a fall that is not one."""
    return max(0.0, -moved.high)
