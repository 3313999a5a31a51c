"""A change of the chosen side over a window, and when it is a fall that matters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpo_diag.diagnosis.pair_rows import REFERENCE, step_name
from dpo_diag.stats import Interval
from dpo_diag.text import by
from dpo_diag.thresholds import Thresholds

READS = (
    "confidence", "displacement_min_nats", "displacement_min_reward", "displacement_min_nats_per_token",
    "displacement_min_share_of_margin", "displacement_min_relative", "few_rows_factor",
    "not_learning_least", "sliding_share", "sliding_min_rows", "sliding_min_windows",
)  # fmt: skip
"""Thresholds that this module reads."""
EVIDENCE: Mapping[str, str] = {
    "source": "what the numbers come from: pairs, means of a split, or training batches",
    "window": "what is compared: reference, first or best step, to the last",
    "steps": "first and last step of that window; ref for the reference",
    "unit": "nats (per response), reward (beta times nats), or nats_per_token",
    "chosen_change": "change of the chosen log-prob, in `unit`, with its interval; a fixed set's mean has none",
    "margin_gain": "change of chosen minus rejected, in `unit`; null where it is not recorded",
    "relative_rise_of_chosen_nll": "rise of chosen's negative log-prob as a share of its start",
    "p": "best to last, pairs: p-value of the change, corrected for the steps that the best was chosen from; else null",
    "from_best": "whether that window begins where chosen was likeliest",
    "material": "whether it is a fall that matters, beyond its noise",
    "loss_fell": "whether the loss fell over that window; null where it is not known",
    "loss": "pairs: mean pair loss at both ends of the window",
    "loss_is": "pairs: which loss that is",
    "quadrants": "pairs: shares of pairs by the signs of the changes of chosen and rejected",
    "pairs_that_fell_most": "pair_ids with the largest falls of chosen",
    "series": "means: the metric that was read",
    "note": "what the numbers do not allow",
    "batch_sd": "training batches: the noise of one logged row, in `unit`",
    "rows": "training batches: logged rows",
}
BEST = "best to last"


@dataclass(frozen=True)
class ChosenChange:
    """A change of the chosen log-prob over a window.

    Attributes:
        unit: nats | reward | nats_per_token, of `delta` and `gain`.
        gain: change of the margin over the window; NaN if unknown.
        relative: rise of the chosen responses' negative log-prob as a share of its start; NaN if unknown.
        loss_fell: None if unknown.
        p: of the change, corrected for the steps that its start was chosen from; None where it was not chosen.
        ends_are: of training rows, what the two levels are (`Ends.start_is`, `Ends.end_is`).
        few: too few training rows to know their noise: only a fall of `few_rows_factor` times the least counts.
    """

    source: str
    window: str
    from_step: float | str
    to_step: float
    unit: str
    delta: Interval
    gain: float
    relative: float
    loss_fell: bool | None
    step_word: str = "step"
    more: Mapping[str, Any] = field(default_factory=dict)
    few: bool = False
    ends_are: tuple[str, str] | None = None
    p: float | None = None

    @property
    def beyond_noise(self) -> bool:
        """Whether it is a fall beyond noise by its interval and, where its start was chosen by looking, its p-value."""
        return self.delta.below and (self.p is None or self.p < 1.0 - self.delta.level)

    def material(self, t: Thresholds) -> bool:
        """Whether it is beyond the smallest fall that matters, whatever the noise."""
        fall = -self.delta.value
        if not fall >= t[f"displacement_min_{self.unit}"] * (t["few_rows_factor"] if self.few else 1.0):
            return False
        # Where the margin gained nothing, nothing makes up for the fall.
        by_gain = fall >= t["displacement_min_share_of_margin"] * max(self.gain, 0.0)  # False where it is NaN
        by_level = self.relative >= t["displacement_min_relative"]
        return by_gain or by_level or (math.isnan(self.gain) and math.isnan(self.relative))

    @property
    def stretch(self) -> str:
        """ "from the reference to step 80", "best to last, steps 20 to 80", "from the first row to the last row"."""
        if self.ends_are:
            return f"from {self.ends_are[0]} to {self.ends_are[1]}"
        if self.from_step == REFERENCE or self.window.startswith("reference"):
            return f"from {step_name(REFERENCE)} to {self.step_word} {self.to_step:.0f}"
        return f"{self.window}, {self.step_word}s {self.from_step:.0f} to {self.to_step:.0f}"

    @property
    def in_words(self) -> str:
        """ "chosen log-prob fell by 2.03 nats per token", "chosen's implicit reward fell by 0.2"."""
        if self.unit == "reward":
            return f"chosen's implicit reward {by(self.delta.value)}"
        return f"chosen log-prob {by(self.delta.value)} {self.unit.replace('_', ' ')}"

    def evidence(self, t: Thresholds) -> dict[str, Any]:
        """As `EVIDENCE` says."""
        return {
            "source": self.source,
            "window": self.window,
            "steps": [self.from_step, self.to_step],
            "unit": self.unit,
            "chosen_change": self.delta,
            "margin_gain": self.gain,
            "p": self.p,
            "relative_rise_of_chosen_nll": self.relative,
            "from_best": self.window == BEST,
            "material": self.material(t) and self.beyond_noise,
            "loss_fell": self.loss_fell,
            **self.more,
        }
