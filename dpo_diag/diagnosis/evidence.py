"""Did the model get better or worse at anything but likelihood? Task scores, answers, what people prefer.

Only this evidence may make a verdict say "harmful" (DESIGN section 2, the counter-view), and only `Measure.direction`
judges it: the verdict and the checks read the same measures and the same judgement.

A score is `score/NAME` in history (higher is better, `weight` = answers behind it) or a checker's verdict on recorded
outputs. Where the same questions were answered at both steps the change is paired: only questions whose answer changed
carry information. That includes a score whose answers stand among the outputs. Other scores are two independent
proportions (Newcombe), which is conservative when both were in truth measured on the same questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.pair_rows import REFERENCE, FloatArray, Step
from dpo_diag.records import Run
from dpo_diag.review.results import results as review_results
from dpo_diag.stats import LEVEL, Interval, paired_change, proportion, proportion_change

IntArray = npt.NDArray[np.int64]
SCORE = "score/"
LEAST_REVIEWED = 8
"""Prompts that people judged below which their preference is no evidence."""
TASK_KINDS = ("score", "correct")
"""Kinds of evidence that measure the task itself."""


@dataclass(frozen=True)
class Measure:
    """One quantity at two steps that is not a likelihood.

    Attributes:
        what: in words; `split`: of which questions.
        kind: "score" | "correct" | "unfinished" | "empty" | "review".
        before, after: its value at `from_step` and `to_step`.
        change: after - before with its interval; without bounds where n is unknown or too small.
        method: how the two were compared.
        p: of an exact test of the change, where there is one.
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

    @property
    def gain(self) -> Interval:
        """The change, turned so that more is better."""
        return self.change if self.better == "higher" else self.change.scaled(-1.0)

    def direction(self, thresholds: Mapping[str, float]) -> str:
        """What the change says: "worse", "better", "no_worse" or "unclear".

        worse or better: the interval excludes 0 in that direction (and so does the exact test, where there is one: the
        two can differ in small samples), and a worsening is at least `verdict.least_harm`; no_worse: the interval
        excludes a worsening of `verdict.benign_margin` or more; unclear: none of these, or no interval.
        """
        if self.gain.bounds is None:
            return "unclear"
        significant = self.p is None or self.p < 1.0 - self.change.level
        if significant and self.gain.below and self.gain.value <= -thresholds["verdict.least_harm"]:
            return "worse"
        if significant and self.gain.above:
            return "better"
        return "no_worse" if self.gain.low > -thresholds["verdict.benign_margin"] else "unclear"

    def document(self, thresholds: Mapping[str, float]) -> dict[str, Any]:
        """As the explanation holds it."""
        return {
            "what": self.what, "split": self.split, "kind": self.kind, "better": self.better,
            "from_step": self.from_step, "to_step": self.to_step, "from": self.before, "to": self.after,
            "delta": self.change.value, "interval": self.change.bounds, "p": self.p,
            **(dict(zip(("lost", "won"), self.flips, strict=True)) if self.flips else {}),
            "n": self.change.n or None, "method": self.method, "direction": self.direction(thresholds),
            "text": str(self),
        }  # fmt: skip

    def __str__(self) -> str:
        """In words, with n and interval."""
        text = f"{self.what} ({self.split}) {self.before:.3f} → {self.after:.3f} (change {self.change.value:+.3f}"
        if self.change.bounds is None:
            return f"{text}, no interval: {self.method})"
        text += f", {100 * self.change.level:g} % interval {self.change.low:+.3f} to {self.change.high:+.3f}"
        return text + f", n = {self.change.n}" + (f", p = {self.p:.2g})" if self.p is not None else ")")


def measures(
    run: Run, from_step: Step | None = None, to_step: int | None = None, level: float = LEVEL
) -> list[Measure]:
    """Everything measured that is not likelihood, between the two steps; empty where nothing was.

    Args:
        from_step, to_step: the steps measured nearest to these are compared; None for the first and the last one.
    """
    start = None if from_step is None else 0 if from_step == REFERENCE else int(from_step)
    changes = [m for curve in score_curves(run) if (m := curve.change(start, to_step, level)) is not None]
    changes += _outputs(run, from_step, to_step, level)
    changes += [
        m for m in preferences(run, level)
        if m.to_step == to_step and m.from_step == start and (m.model == "policy" or start == 0)
        and m.change.n >= LEAST_REVIEWED
    ]  # fmt: skip
    return changes


# --- scores of the history --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """One task score of one split along the run.

    Attributes:
        steps, values, n: ascending steps, the score, the answers behind it (NaN where unknown); shape (evaluations,).
        answers: the answers that the score is the mean of, (questions, evaluations), where the outputs hold them.
    """

    name: str
    split: str
    steps: IntArray
    values: FloatArray
    n: FloatArray
    answers: FloatArray | None

    @property
    def is_proportion(self) -> bool:
        """Whether every value is a share of questions, and how many is known."""
        return bool(((self.values >= 0) & (self.values <= 1) & (self.n > 0)).all())

    def change(self, from_step: int | None, to_step: int | None, level: float = LEVEL) -> Measure | None:
        """The change between the evaluations nearest to two steps (the earlier of two); None if they are one."""
        first = 0 if from_step is None else int(np.abs(self.steps - from_step).argmin())
        last = len(self.steps) - 1 if to_step is None else int(np.abs(self.steps - to_step).argmin())
        return self.between(first, last, level) if first < last else None

    def between(self, first: int, last: int, level: float = LEVEL) -> Measure:
        """The change between two evaluations, by their index."""
        if self.answers is not None:
            return _paired(self.name, self.split, "score", int(self.steps[first]), int(self.steps[last]),
                           self.answers[:, first], self.answers[:, last], level)  # fmt: skip
        (p0, p1), (n0, n1) = self.values[[first, last]], self.n[[first, last]]
        if n0 > 0 and n1 > 0 and 0 <= p0 <= 1 and 0 <= p1 <= 1:
            change, method = proportion_change(p0, n0, p1, n1, level), "independent proportions (Newcombe)"
        else:
            change = Interval(p1 - p0, math.nan, math.nan, 0, level=level)
            method = "two numbers without their n"
        return Measure(self.name, self.split, "score", int(self.steps[first]), int(self.steps[last]), float(p0),
                       float(p1), change, method)  # fmt: skip


def score_curves(run: Run, first: int | None = None, last: int | None = None) -> list[ScoreCurve]:
    """Every finite task score of the history, between two steps (all by default), in the order of names and splits."""
    history = run.history
    rows = history.loc[history["name"].astype(str).str.startswith(SCORE) & np.isfinite(history["value"])]
    rows = rows.loc[
        (rows["step"] >= (-math.inf if first is None else first))
        & (rows["step"] <= (math.inf if last is None else last))
    ]
    curves = []
    for (name, split), group in rows.groupby(["name", "split"], observed=True):
        ordered = group.sort_values("step")
        steps = ordered["step"].to_numpy(dtype=np.int64)
        values, n = (ordered[c].to_numpy(dtype=np.float64) for c in ("value", "weight"))
        answers = _answers_behind(run, str(split), steps, values, n)
        curves.append(ScoreCurve(str(name).removeprefix(SCORE), str(split), steps, values, n, answers))
    return curves


def _answers_behind(run: Run, split: str, steps: IntArray, values: FloatArray, n: FloatArray) -> FloatArray | None:
    """The recorded answers that a score is the mean of: those tagged with its split, or else all of them.

    Taken for it only where their number and their mean are the score's at every evaluation.
    """
    for tag in (re.compile(re.escape(split)), None):
        table = answers(run, tag)
        if not set(steps) <= set(table.columns):
            continue
        behind = table[list(steps)].to_numpy(dtype=np.float64)
        if len(behind) and (n == len(behind)).all() and np.allclose(behind.mean(axis=0), values, atol=1e-9):
            return behind
    return None


# --- what the checkpoints wrote ---------------------------------------------------------------------------------------


def answers(run: Run, tag: re.Pattern[str] | None = None) -> pd.DataFrame:
    """The checker's verdict in [0, 1] on the policy's first answers: one row per prompt that was answered at every step
    (index prompt_id), one column per step. Empty without checked answers.

    Args:
        tag: only prompts with a tag in which this is found.
    """
    if not run.has("outputs"):
        return pd.DataFrame()
    outputs = run.outputs
    rows = outputs[outputs["correct"].notna() & (outputs["model"] == "policy") & (outputs["sample"].fillna(0) == 0)]
    if tag is not None:
        fits = [tags is not None and any(tag.search(str(t)) for t in tags) for tags in rows["tags"]]
        rows = rows[np.asarray(fits, dtype=bool)]
    return rows.pivot_table(
        index="prompt_id", columns="step", values="correct", aggfunc="first", observed=True
    ).dropna()


def _steps(table: pd.DataFrame) -> list[int]:
    return [int(str(column)) for column in table.columns]


def answers_change(run: Run, tag: re.Pattern[str], level: float = LEVEL) -> Measure | None:
    """Change of the tagged answers' correctness from the first to the last step; None below two steps or 3 prompts."""
    table = answers(run, tag)
    if table.shape[1] < 2 or len(table) < 3:
        return None
    first, last = _steps(table)[0], _steps(table)[-1]
    return _paired("answers", "outputs", "correct", first, last, table[first], table[last], level)


def _outputs(run: Run, from_step: Step | None, to_step: int | None, level: float) -> list[Measure]:
    """Answers to the same prompts under the same decoding: correct, cut off, empty."""
    if not run.has("outputs"):
        return []
    outputs = run.outputs
    outputs = outputs.loc[outputs["sample"] == 0]
    policy = outputs.loc[outputs["model"] == "policy"]
    steps = np.unique(policy["step"].to_numpy(dtype=np.int64))
    if not steps.size:
        return []
    start = 0 if from_step == REFERENCE else steps[0] if from_step is None else int(from_step)
    first = int(steps[np.abs(steps - start).argmin()])
    last = int(steps[-1] if to_step is None else steps[np.abs(steps - to_step).argmin()])
    before, after = policy.loc[policy["step"] == first], policy.loc[policy["step"] == last]
    reference = outputs.loc[outputs["model"].isin(["ref", "sft"])]
    if (from_step == REFERENCE or first >= last) and len(reference):
        before = reference.loc[reference["model"] == reference["model"].iloc[0]]
        first = int(before["step"].iloc[0])
    elif first >= last:
        return []
    both = before.merge(after, on=["prompt_id", "decoding_hash"], suffixes=("_0", "_1")).drop_duplicates("prompt_id")
    found = [
        _paired(what, "outputs", kind, first, last, both[f"{column}_0"].map(test), both[f"{column}_1"].map(test), level,
                better)
        for kind, what, column, test, better in (
            ("correct", "answers that the checker accepts", "correct", lambda v: v, "higher"),
            ("unfinished", "answers cut off by the length limit", "finish_reason", _flag(lambda v: v == "length"),
             "lower"),
            ("empty", "empty answers", "text", _flag(lambda v: not v.strip()), "lower"),
        )
    ]  # fmt: skip
    return [m for m in found if m.change.n]


def _flag(test: Any) -> Any:
    """0 or 1 of a value, NaN where it is missing."""
    return lambda v: math.nan if v is None or v != v else float(test(v))


def _paired(
    what: str,
    split: str,
    kind: str,
    from_step: int,
    to_step: int,
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    level: float,
    better: str = "higher",
) -> Measure:
    """The change over the units known at both steps; n is 0 where there is none."""
    old, new = (np.asarray(v, dtype=np.float64) for v in (before, after))
    known = ~(np.isnan(old) | np.isnan(new))
    old, new = old[known], new[known]
    change = paired_change(old, new, level)
    flips, method = None, "same prompts, paired t"
    if np.isin(old, (0.0, 1.0)).all() and np.isin(new, (0.0, 1.0)).all():
        flips, method = (int((new < old).sum()), int((new > old).sum())), "same prompts, McNemar"
    elif change.delta.bounds is None:
        method = "same prompts, too few for an interval"
    first, last = (float(v.mean()) if v.size else math.nan for v in (old, new))
    return Measure(what, split, kind, from_step, to_step, first, last, change.delta, method, change.p, flips, better)


# --- what people prefer -----------------------------------------------------------------------------------------------


def preferences(run: Run, level: float = LEVEL) -> list[Measure]:
    """What people preferred, blind, of two looks whose later one is the policy's: its win rate (ties half) against the
    0.5 of no preference, with Wilson's interval; [] without reviews."""
    if not (run.path / "review").is_dir():
        return []
    preferred = []
    for c in review_results(run)["comparisons"]:
        if c["b_model"] != "policy":
            continue
        rate = proportion(c["win_rate"] * c["n"], c["n"], level)
        change = Interval(rate.value - 0.5, rate.low - 0.5, rate.high - 0.5, rate.n, rate.method, level)
        what = f"people's blind preference for step {c['b_step']} over {c['a']}"
        preferred.append(
            Measure(what, "review", "review", c["a_step"], c["b_step"], 0.5, c["win_rate"], change,
                    "blind pairwise verdicts, ties half (Wilson)", c["p"], model=c["a_model"])
        )  # fmt: skip
    return preferred


def newest_preferences(run: Run, level: float = LEVEL) -> list[Measure]:
    """Of `preferences` those for the last step that people judged; the level is corrected for their number."""
    last = max((m.to_step for m in preferences(run)), default=None)
    count = sum(m.to_step == last for m in preferences(run))
    return [m for m in preferences(run, 1 - (1 - level) / max(1, count)) if m.to_step == last]


def best_and_last(run: Run, level: float = LEVEL, first: int | None = None, last: int | None = None) -> list[Measure]:
    """Of every score measured at three steps or more: the change from its best evaluation to its last one.

    The level is corrected for looking at all evaluations (Bonferroni). A score that is best at its last evaluation has
    a change of 0. People's preference for the last policy step that they judged over an earlier one counts too.
    """
    changes = []
    for curve in score_curves(run, first, last):
        looks = len(curve.steps) - 1
        if looks >= 2 and curve.is_proportion:
            changes.append(curve.between(int(curve.values.argmax()), looks, 1 - (1 - level) / looks))
    table = answers(run)
    steps = [s for s in _steps(table) if (first or 0) <= s and (last is None or s <= last)]
    if len(steps) >= 3 and len(table) >= 3:
        best, end = steps[int(table[steps].mean().to_numpy().argmax())], steps[-1]
        corrected = 1 - (1 - level) / (len(steps) - 1)
        changes.append(_paired("correct answers", "outputs", "correct", best, end, table[best], table[end], corrected))
    return changes + [m for m in newest_preferences(run, level) if m.model == "policy"]
