"""One quantity at two steps that is not a likelihood, and what its change says.

A change has one interval, at `confidence_scores`, wherever it is printed. What is corrected is the p-value: over all
that was measured at the two steps (Benjamini and Hochberg), or for the number of evaluations a best one was chosen
from (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpo_diag.stats import TOO_FEW, Interval, corrected_for, false_discovery
from dpo_diag.text import about, interval, plural
from dpo_diag.thresholds import Thresholds

UNPAIRED = "unpaired: per-question answers are not recorded"


@dataclass(frozen=True)
class Measure:
    """One quantity at two steps that is not a likelihood.

    Attributes:
        what: in words; `split`: of which questions.
        kind: "score" | "correct" | "unfinished" | "empty" | "review".
        before, after: its value at `from_step` and `to_step`.
        change: after - before with its interval; without bounds where n is unknown or too small.
        method: how the two were compared.
        p: of a test of the change, where there is one; `q`: the same corrected, see `corrected`.
        corrected: what for, in words: "3 measures", "the best of 4 checkpoints"; "" where p stands alone.
        elsewhere: whether the steps compared are others than those asked for.
        flips: (lost, won): questions answered right before and wrong after, and the reverse; None unless right or wrong
            answers were paired.
        better: "higher" | "lower".
        model: what answered at `from_step`: "policy", or the reference.
    """

    what: str
    split: str
    kind: str
    from_step: int
    to_step: int
    before: float
    after: float
    change: Interval
    method: str
    p: float | None = None
    flips: tuple[int, int] | None = None
    better: str = "higher"
    model: str = "policy"
    q: float | None = None
    corrected: str = ""
    elsewhere: bool = False

    @property
    def paired(self) -> bool:
        """Whether the same questions are compared, one by one."""
        return self.method != UNPAIRED

    @property
    def gain(self) -> Interval:
        """The change, turned so that more is better."""
        return self.change if self.better == "higher" else self.change.scaled(-1.0)

    def direction(self, thresholds: Mapping[str, float]) -> str:
        """What the change says: "worse", "better", "no_worse" or "unclear".

        worse or better: the interval excludes 0 in that direction (and so does the test, corrected for how many were
        made, where there is one), and a worsening is at least `verdict.least_harm`; no_worse: the interval
        excludes a worsening of `verdict.benign_margin` or more; unclear: none of these, or no interval.
        """
        if self.gain.bounds is None:
            return "unclear"
        p = self.p if self.q is None else self.q
        significant = p is None or p < 1.0 - self.change.level
        if significant and self.gain.below and self.gain.value <= -thresholds["verdict.least_harm"]:
            return "worse"
        if significant and self.gain.above:
            return "better"
        return "no_worse" if self.gain.low > -thresholds["verdict.benign_margin"] else "unclear"

    def needed(self, thresholds: Mapping[str, float]) -> tuple[int, str] | None:
        """(questions, to tell what) where the answer is unclear for lack of them: to tell a fall like this one from no
        change or, where there is none that matters, to exclude a fall of `verdict.benign_margin`; power 80 %."""
        if self.direction(thresholds) != "unclear":
            return None
        margin = thresholds["verdict.benign_margin"]
        falls = self.gain.value <= -thresholds["verdict.least_harm"]
        n = self.change.needed(self.gain.value if falls else self.gain.value + margin)
        what = "to tell a change of this size from none" if falls else f"to exclude a worsening of {margin:g}"
        return None if n is None else (max(n, self.change.n + 1), what)

    def told(self, thresholds: Mapping[str, float]) -> str:
        """In words, with what it lacks."""
        return f"{self}{self.lacking(thresholds)}"

    def lacking(self, thresholds: Mapping[str, float]) -> str:
        """ "; about 360 questions are needed to ..." where the answer is unclear for lack of them, else ""."""
        needed = self.needed(thresholds)
        return f"; about {about(needed[0])} questions are needed {needed[1]} (power 80 %)" if needed else ""

    def document(self, thresholds: Mapping[str, float]) -> dict[str, Any]:
        """As the explanation holds it."""
        return {
            "what": self.what, "split": self.split, "kind": self.kind, "better": self.better,
            "from_step": self.from_step, "to_step": self.to_step, "from": self.before, "to": self.after,
            "delta": self.change.value, "interval": self.change.bounds, "level": self.change.level, "p": self.p,
            "q": self.q, "corrected_for": self.corrected or None, "paired": self.paired,
            "needed": dict(zip(("n", "what"), self.needed(thresholds) or (None, None), strict=True)),
            **(dict(zip(("lost", "won"), self.flips, strict=True)) if self.flips else {}),
            "n": self.change.n or None, "method": self.method, "direction": self.direction(thresholds),
            "text": self.told(thresholds),
        }  # fmt: skip

    def __str__(self) -> str:
        """In words, with n, interval, method and what the p-value is corrected for."""
        steps = f"steps {self.from_step} to {self.to_step}: " if self.elsewhere else ""
        n = self.change.n
        text = f"{self.what} ({self.split}) {self.before:.3f} → {self.after:.3f} ({steps}"
        text += "no answer changed" if self.flips == (0, 0) else f"change {self.change.value:+.3f}"
        if self.change.bounds is None:
            return f"{text}, n = {n}: {TOO_FEW})" if n else f"{text}, no interval: {self.method})"
        text += ", paired " if self.paired else ", "
        text += interval(self.change.bounds, self.change.level, "{:+.3f}".format)
        text += f", n = {n}"
        if self.p is not None:
            text += f", p = {self.p:.2g}"
            if self.q is not None and f"{self.q:.2g}" != f"{self.p:.2g}":
                text += f", {self.q:.2g} corrected for {self.corrected}"
        return f"{text})" if self.paired else f"{text}; {UNPAIRED})"


def corrected(changes: list[Measure]) -> list[Measure]:
    """With q-values over those that could show anything: where no answer changed nothing was tested (Tarone 1990)."""
    p = [m.p if m.p is not None and m.change.bounds and m.flips != (0, 0) else math.nan for m in changes]
    tested = int(np.isfinite(p).sum())
    if tested < 2:
        return changes
    return [
        m if math.isnan(raw) else replace(m, q=float(q), corrected=plural(tested, "measure"))
        for m, raw, q in zip(changes, p, false_discovery(p), strict=True)
    ]


def of_several(measure: Measure, looks: int, what: str) -> Measure:
    """A measure whose p-value is corrected for `looks` (`what` in words) that it was chosen from."""
    if measure.p is None or looks < 2:
        return measure
    return replace(measure, q=corrected_for(measure.p, looks), corrected=what)


def enough(change: Interval, limits: Thresholds) -> Interval:
    """The estimate, without its interval where fewer than `least_for_interval` units are behind it."""
    return change.with_least(limits["least_for_interval"])
