"""Did the model get better or worse at anything but likelihood? Task scores, answers, what people prefer.

Only this evidence may make a verdict say "harmful" (DESIGN section 2, the counter-view), and only `Measure.direction`
judges it: the verdict and the checks read the same measures and the same judgement.

A score is `score/NAME` in history (higher is better, `weight` = answers behind it) or a checker's verdict on recorded
outputs. Where the same questions were answered at both steps the change is paired (`dpo_diag.paired`); that includes a
score whose answers stand among the outputs. Of other scores the records hold two shares, not who answered what: they
are compared as independent samples (Newcombe), which is conservative where both were in truth measured on the same
questions, and the text says "unpaired".

n counts questions: several samples of one are averaged first, and questions with one tag `source=NAME` are clustered.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.measure import UNPAIRED, Measure, corrected, enough, of_several
from dpo_diag.diagnosis.pair_rows import REFERENCE, FloatArray, Step
from dpo_diag.outputs.answers import alike, prompt_sources
from dpo_diag.paired import clustered_mean, paired_change
from dpo_diag.records import Run
from dpo_diag.review.results import results as review_results
from dpo_diag.stats import (
    TOO_FEW,
    Interval,
    cluster_index,
    independent_test,
    mean_interval,
    no_interval,
    proportion,
    proportion_change,
)
from dpo_diag.text import plural
from dpo_diag.thresholds import Thresholds, defaults

IntArray = npt.NDArray[np.int64]
SCORE = "score/"
Sources = npt.NDArray[np.object_] | None
TASK_KINDS = ("score", "correct")
"""Kinds of evidence that measure the task itself."""


def measures(
    run: Run, from_step: Step | None = None, to_step: int | None = None, thresholds: Thresholds | None = None
) -> list[Measure]:
    """Everything measured that is not likelihood, between the two steps, corrected for how much that is; empty where
    nothing was.

    Args:
        from_step, to_step: the steps measured nearest to these are compared; None for the first and the last one.
        thresholds: `confidence_scores`, `least_for_interval`; None for the defaults.
    """
    limits = thresholds or defaults()
    start = None if from_step is None else 0 if from_step == REFERENCE else int(from_step)
    changes = [m for curve in score_curves(run) if (m := curve.change(start, to_step, limits)) is not None]
    changes += _outputs(run, from_step, to_step, limits)
    changes += [
        m for m in preferences(run, limits)
        if m.to_step == to_step and m.from_step == start and (m.model == "policy" or start == 0)
        and m.change.bounds is not None
    ]  # fmt: skip
    asked = {start, to_step} - {None}
    return corrected([replace(m, elsewhere=bool(asked - {m.from_step, m.to_step})) for m in changes])


# --- scores of the history --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """One task score of one split along the run.

    Attributes:
        steps, values, n: ascending steps, the score, the answers behind it (NaN where unknown); shape (evaluations,).
        answers: the answers that the score is the mean of, (questions, evaluations), where the outputs hold them.
        sources: what each of the questions belongs to (questions,), where their tags say.
        prompts: ids of the questions, ascending; () where the answers are not recorded.
    """

    name: str
    split: str
    steps: IntArray
    values: FloatArray
    n: FloatArray
    answers: FloatArray | None
    sources: Sources = None
    prompts: tuple[str, ...] = ()

    @property
    def is_proportion(self) -> bool:
        """Whether every value is a share of questions, and how many is known."""
        return bool(((self.values >= 0) & (self.values <= 1) & (self.n > 0)).all())

    def value_at(self, place: int, limits: Thresholds) -> Interval:
        """The score at one evaluation: of the questions' means, where the answers are recorded; else of a share."""
        level, value, n = limits["confidence_scores"], float(self.values[place]), float(self.n[place])
        if self.answers is None:
            share = 0 <= value <= 1 and n > 0
            return enough(proportion(value * n, n, level), limits) if share else no_interval(value, 0, level)
        own = self.answers[:, place]
        index = None if self.sources is None else cluster_index(self.sources)
        return enough(mean_interval(own, level) if index is None else clustered_mean(own, index, level), limits)

    def change(self, from_step: int | None, to_step: int | None, limits: Thresholds) -> Measure | None:
        """The change between the evaluations nearest to two steps (the earlier of two); None if they are one."""
        first = 0 if from_step is None else int(np.abs(self.steps - from_step).argmin())
        last = len(self.steps) - 1 if to_step is None else int(np.abs(self.steps - to_step).argmin())
        return self.between(first, last, limits) if first < last else None

    def between(self, first: int, last: int, limits: Thresholds) -> Measure:
        """The change between two evaluations, by their index."""
        return self.since(self, first, last, limits)

    def since(self, earlier: ScoreCurve, first: int, last: int, limits: Thresholds) -> Measure:
        """The change from an evaluation of an `earlier` curve (another run's, or this one) to one of this."""
        steps = int(earlier.steps[first]), int(self.steps[last])
        if self.answers is not None and earlier.answers is not None and self.prompts == earlier.prompts:
            return _paired(self.name, self.split, "score", *steps, earlier.answers[:, first], self.answers[:, last],
                           limits, sources=self.sources)  # fmt: skip
        p0, p1, n0, n1 = earlier.values[first], self.values[last], earlier.n[first], self.n[last]
        level, p = limits["confidence_scores"], None
        if n0 > 0 and n1 > 0 and 0 <= p0 <= 1 and 0 <= p1 <= 1:
            change = enough(proportion_change(p0, n0, p1, n1, level), limits)
            method, p = UNPAIRED, independent_test(p0, n0, p1, n1)
        else:
            change = Interval(p1 - p0, math.nan, math.nan, 0, level=level)
            method = "how many questions it is the mean of is not recorded"
        return Measure(self.name, self.split, "score", *steps, float(p0), float(p1), change, method, p)


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
        behind = _answers_behind(run, str(split), steps, values, n)
        answers, sources = (
            (None, None) if behind is None else (behind.to_numpy(dtype=np.float64), sources_of(run, behind))
        )
        prompts = () if behind is None else tuple(map(str, behind.index))
        about = str(name).removeprefix(SCORE), str(split)
        curves.append(ScoreCurve(*about, steps, values, n, answers, sources, prompts))
    return curves


def _answers_behind(run: Run, split: str, steps: IntArray, values: FloatArray, n: FloatArray) -> pd.DataFrame | None:
    """The recorded answers that a score is the mean of: those tagged with its split, or else all of them.

    Taken for it only where their number and their mean are the score's at every evaluation.
    """
    for tag in (re.compile(re.escape(split)), None):
        table = answers(run, tag)
        if not set(steps) <= set(table.columns):
            continue
        behind = table[list(steps)].astype(np.float64)
        several = np.asarray(_n_answers(run, tag, behind, steps))
        known = (n == len(behind)).all() or (n == several).all()
        if len(behind) and known and np.allclose(behind.mean(axis=0), values, atol=1e-9):
            return behind
    return None


# --- what the checkpoints wrote ---------------------------------------------------------------------------------------


def answers(run: Run, tag: re.Pattern[str] | None = None) -> pd.DataFrame:
    """The checker's verdict in [0, 1] on the policy's answers (the mean over a prompt's samples): one row per prompt
    that was answered at every step (index prompt_id), one column per step. Empty without checked answers.

    Args:
        tag: only prompts with a tag in which this is found.
    """
    if not run.has("outputs"):
        return pd.DataFrame()
    rows = _checked(run, tag)
    return rows.pivot_table(index="prompt_id", columns="step", values="correct", aggfunc="mean", observed=True).dropna()


def _checked(run: Run, tag: re.Pattern[str] | None) -> pd.DataFrame:
    """The policy's answers that a checker judged, of prompts with such a tag, sample by sample."""
    outputs = alike(run.outputs)
    rows = outputs[outputs["correct"].notna() & (outputs["model"] == "policy")]
    if tag is not None:
        fits = [tags is not None and any(tag.search(str(t)) for t in tags) for tags in rows["tags"]]
        rows = rows[np.asarray(fits, dtype=bool)]
    return rows


def _n_answers(run: Run, tag: re.Pattern[str] | None, table: pd.DataFrame, steps: IntArray) -> list[int]:
    """Samples of a table's prompts at each of the steps."""
    rows = _checked(run, tag)
    found = rows.loc[rows["prompt_id"].isin(table.index), "step"].value_counts()
    return [int(found.get(step, 0)) for step in steps]


def sources_of(run: Run, table: pd.DataFrame) -> Sources:
    """What each prompt of a table (index prompt_id) belongs to: the value of its tag `source=`, else itself, shape
    (prompts,); None where no two share one."""
    tags = run.outputs.drop_duplicates("prompt_id").set_index("prompt_id")["tags"].reindex(table.index)
    sources = prompt_sources(tags).to_numpy(dtype=object)
    return sources if len(set(sources)) < len(sources) else None


def _steps(table: pd.DataFrame) -> list[int]:
    return [int(str(column)) for column in table.columns]


def answers_change(run: Run, tag: re.Pattern[str], limits: Thresholds) -> Measure | None:
    """Change of the tagged answers' correctness from the first to the last step; None below two steps or 3 prompts."""
    table = answers(run, tag)
    if table.shape[1] < 2 or len(table) < 3:
        return None
    first, last = _steps(table)[0], _steps(table)[-1]
    return _paired("answers", "outputs", "correct", first, last, table[first], table[last], limits,
                   sources=sources_of(run, table))  # fmt: skip


def _outputs(run: Run, from_step: Step | None, to_step: int | None, limits: Thresholds) -> list[Measure]:
    """Answers to the same prompts under the same decoding: correct, cut off, empty."""
    if not run.has("outputs"):
        return []
    outputs = alike(run.outputs)
    policy = outputs.loc[outputs["model"] == "policy"]
    steps = np.unique(policy["step"].to_numpy(dtype=np.int64))
    if not steps.size:
        return []
    start = 0 if from_step == REFERENCE else steps[0] if from_step is None else int(from_step)
    first = int(steps[np.abs(steps - start).argmin()])
    last = int(steps[-1] if to_step is None else steps[np.abs(steps - to_step).argmin()])
    before, after, model = policy.loc[policy["step"] == first], policy.loc[policy["step"] == last], "policy"
    # The order of `Answers.baseline`.
    others = [m for m in (REFERENCE, "sft") if (outputs["model"] == m).any()]
    if (from_step == REFERENCE or first >= last) and others:
        model = others[0]
        before = outputs.loc[outputs["model"] == model]
        first = int(before["step"].iloc[0])
    elif first >= last:
        return []
    found = []
    for kind, what, column, test, better in (
        ("correct", "answers that the checker accepts", "correct", lambda v: v, "higher"),
        ("unfinished", "answers cut off by the length limit", "finish_reason", lambda v: v == "length", "lower"),
        ("empty", "empty answers", "text", lambda v: not v.strip(), "lower"),
    ):
        table = pd.DataFrame({name: _by_prompt(rows, column, test) for name, rows in (("0", before), ("1", after))})
        table = table.dropna().groupby(level="prompt_id", observed=True).first()
        measure = _paired(what, "outputs", kind, first, last, table["0"], table["1"], limits, better,
                          sources_of(run, table))  # fmt: skip
        found.append(replace(measure, model=model))
    return [m for m in found if m.change.n]


def _by_prompt(rows: pd.DataFrame, column: str, test: Any) -> pd.Series[float]:
    """The mean of a test over the samples of each prompt and decoding; missing values are no answers."""
    known = rows.loc[rows[column].notna(), ["prompt_id", "decoding_hash", column]]
    values = known[column].map(test).astype(np.float64)
    keys = [known[key].astype(str) for key in ("prompt_id", "decoding_hash")]
    means: pd.Series[float] = values.groupby(keys, observed=True).mean()
    return means


def _paired(
    what: str,
    split: str,
    kind: str,
    from_step: int,
    to_step: int,
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    limits: Thresholds,
    better: str = "higher",
    sources: Sources = None,
) -> Measure:
    """The change over the units known at both steps; n is 0 where there is none."""
    old, new = (np.asarray(v, dtype=np.float64) for v in (before, after))
    known = ~(np.isnan(old) | np.isnan(new))
    old, new = old[known], new[known]
    found = paired_change(old, new, limits["confidence_scores"], None if sources is None else sources[known])
    change, flips = enough(found.delta, limits), None
    if np.isin(old, (0.0, 1.0)).all() and np.isin(new, (0.0, 1.0)).all():
        flips = (int((new < old).sum()), int((new > old).sum()))
    test = "McNemar" if flips is not None and "clustered" not in change.method else "sign flips"
    method = f"same questions, {change.method}, {test}" if change.bounds else f"same questions, {TOO_FEW}"
    first, last = (float(v.mean()) if v.size else math.nan for v in (old, new))
    return Measure(what, split, kind, from_step, to_step, first, last, change, method, found.p, flips, better)


# --- what people prefer -----------------------------------------------------------------------------------------------


def preferences(run: Run, thresholds: Thresholds | None = None) -> list[Measure]:
    """What people preferred, blind, of two looks whose later one is the policy's: its win rate (ties half) against the
    0.5 of no preference, with Wilson's interval; [] without reviews."""
    if not (run.path / "review").is_dir():
        return []
    limits = thresholds or defaults()
    preferred = []
    for c in review_results(run)["comparisons"]:
        if c["b_model"] != "policy":
            continue
        rate = proportion(c["win_rate"] * c["n"], c["n"], limits["confidence_scores"])
        change = replace(rate, value=rate.value - 0.5, low=rate.low - 0.5, high=rate.high - 0.5)
        what = f"people's blind preference for step {c['b_step']} over {c['a']}"
        preferred.append(
            Measure(what, "review", "review", c["a_step"], c["b_step"], 0.5, c["win_rate"], enough(change, limits),
                    "blind pairwise verdicts, ties half (Wilson)", c["p"], model=c["a_model"])
        )  # fmt: skip
    return preferred


def newest_preferences(run: Run, thresholds: Thresholds | None = None) -> list[Measure]:
    """Of `preferences` those for the last step that people judged; p is corrected for their number."""
    judged = preferences(run, thresholds)
    last = max((m.to_step for m in judged), default=None)
    newest = [m for m in judged if m.to_step == last]
    return [of_several(m, len(newest), plural(len(newest), "comparison")) for m in newest]


def best_and_last(
    run: Run, thresholds: Thresholds | None = None, first: int | None = None, last: int | None = None
) -> list[Measure]:
    """Of every score measured at three steps or more: the change from its best evaluation to its last one.

    p is corrected for looking at all evaluations (Bonferroni). A score that is best at its last evaluation has a change
    of 0. People's preference for the last policy step that they judged over an earlier one counts too.
    """
    limits, changes = thresholds or defaults(), []
    for curve in score_curves(run, first, last):
        looks = len(curve.steps) - 1
        if looks >= 2 and curve.is_proportion:
            change = curve.between(int(curve.values.argmax()), looks, limits)
            changes.append(of_several(change, looks, f"the best of {looks + 1} checkpoints"))
    table = answers(run)
    steps = [s for s in _steps(table) if (first or 0) <= s and (last is None or s <= last)]
    if len(steps) >= 3 and len(table) >= 3:
        best, end = steps[int(table[steps].mean().to_numpy().argmax())], steps[-1]
        change = _paired("correct answers", "outputs", "correct", best, end, table[best], table[end], limits,
                         sources=sources_of(run, table))  # fmt: skip
        changes.append(of_several(change, len(steps) - 1, f"the best of {len(steps)} checkpoints"))
    return changes + [m for m in newest_preferences(run, limits) if m.model == "policy"]
