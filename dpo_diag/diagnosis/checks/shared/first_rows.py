"""What the first rows of a training show: how noisy they are, what they move, whether they began where they should."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dpo_diag.ends import QUARTER
from dpo_diag.stats import LEAST_FOR_T, FloatArray, Interval, noise_sd, t_interval
from dpo_diag.thresholds import Thresholds


def n_early(t: Thresholds) -> int:
    """How many first rows are looked at."""
    return int(t["reference_early_rows"])


def early_noise(values: FloatArray, t: Thresholds) -> float:
    """The noise of the first rows alone: a learning curve grows noisier as it goes."""
    return noise_sd(values[: int(t["reference_noise_rows"])])


def movement(values: FloatArray, at_once: bool, t: Thresholds) -> float:
    """How far the first row may be from the reference: a multiple of what the next rows move, and of their noise."""
    if at_once:
        return 0.0
    if values.size < LEAST_FOR_T:
        return math.inf
    step = float(np.abs(np.diff(values[: n_early(t)])).max())
    return max(t["reference_movement_factor"] * step, t["reference_movement_sds"] * early_noise(values, t))


def early_excess(values: FloatArray, start: float, t: Thresholds) -> Interval | None:
    """How far the first quarter of the loss stands above the start, where it can only have begun there; else None.

    A run that leaves its reference and then diverges begins at the start (its first row is near it, its early rows
    rise): both are excluded. A run that learns stands below.
    """
    early = values[: max(n_early(t), int(values.size * QUARTER))]
    if early.size < n_early(t):
        return None
    k, sd = early.size // 2, noise_sd(early)
    rising = float(early[k:].mean() - early[:k].mean()) > sd * math.sqrt(2 / k)
    at_start = abs(float(early[0]) - start) <= max(t["reference_at_start_sds"] * sd, t["reference_tolerance_loss"])
    if rising or at_start:
        return None
    # The noise around the trend, not the spread with it: the early rows may fall.
    excess = t_interval(early - start, t["confidence"])
    half = (excess.high - excess.value) * sd / float(early.std(ddof=1)) if early.std() > 0 else 0.0
    return replace(excess, low=excess.value - half, high=excess.value + half)
