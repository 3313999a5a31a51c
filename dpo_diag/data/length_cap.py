"""Answers that a generation cap cut off: many of exactly the greatest length, or long ones that stop midway."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dpo_diag.text import percent, plural
from dpo_diag.thresholds import Thresholds

Mask = npt.NDArray[np.bool_]


def stops_midway(text: str) -> bool:
    """Whether a text ends in a letter, a digit, a comma or the like: not with what ends a sentence, a quote or a list
    item. An answer of one word does too, so this says something of many answers only."""
    text = text.rstrip()
    return bool(text) and (text[-1].isalnum() or text[-1] in ",;:-–—(/&=+")


def capped(lengths: npt.ArrayLike, midway: npt.ArrayLike, unit: str, t: Thresholds) -> tuple[Mask, str]:
    """(answers that end at a cap, what shows it); none and "" where nothing does.

    A cap shows in one of two ways. Many answers have exactly the greatest length, far more than any length a little
    below it, and most of those stop midway. Or the longest tenth mostly stops midway, while the shorter half hardly
    ever does (another tokenizer's cap is no single length here).

    Args:
        lengths: of each answer, in `unit`.
        midway: whether it stops midway (`stops_midway`).
    """
    n, open_end = np.asarray(lengths, dtype=np.int64), np.asarray(midway, dtype=bool)
    nothing = np.zeros(len(n), dtype=bool)
    if len(n) < t["length_cap.least_answers"]:
        return nothing, ""
    top = int(n.max())
    at = n == top
    near = (n > 0.8 * top) & ~at
    usual = max(1.0, near.sum() / max(0.2 * top, 1.0))
    many = at.sum() >= max(t["length_cap.least_at_cap"], t["length_cap.least_share"] * len(n))
    if many and at.sum() >= t["length_cap.least_times_usual"] * usual and top >= t["length_cap.least_length"]:
        others = open_end[~at].mean() if (~at).any() else 0.0
        if open_end[at].mean() >= t["length_cap.midway_share"] and others <= t["length_cap.midway_share"] / 2:
            ends = percent(float(open_end[at].mean()))
            return (
                at,
                f"{plural(int(at.sum()), 'answer has', 'answers have')} exactly {top} {unit}, the most of all, "
                f"and {ends} of them stop in mid-sentence",
            )
    longest = n >= np.quantile(n, 0.9)
    shorter = n <= np.quantile(n, 0.5)
    share, usual_share = open_end[longest].mean(), open_end[shorter].mean()
    if (
        longest.sum() >= t["length_cap.least_at_cap"]
        and share >= t["length_cap.midway_share"]
        and usual_share <= t["length_cap.midway_usual"]
    ):
        return (
            longest & open_end,
            f"{percent(float(share))} of the longest tenth stop in mid-sentence, "
            f"{percent(float(usual_share))} of the shorter half",
        )
    return nothing, ""
