"""Did the model get better or worse at anything but likelihood? Task scores and what the checkpoints wrote.

Only this evidence may make a verdict say "harmful" (DESIGN section 2, the counter-view). A score is `score/NAME` in
history (higher is better, `weight` = answers behind it) or a checker's verdict on recorded outputs. Answers to the same
prompts are compared pairwise (McNemar); scores without answers as two independent proportions, which is conservative
when both were measured on the same questions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.records import Run
from dpo_diag.records.metrics import newcombe_interval
from dpo_diag.review.results import results as review_results

SCORE = "score/"
LEAST_REVIEWED = 8
"""Prompts that people judged below which their preference is no evidence."""


def mcnemar(lost: int, won: int, n: int) -> dict[str, Any]:
    """Paired change of a proportion: `lost` right before and wrong after, `won` the reverse, of n.

    Returns: {"delta", "interval" (95 %, Agresti & Min 2005: Wald with half an answer added to each cell), "p" (exact
    two-sided binomial on the discordant answers; 1 if there are none), "lost", "won", "n"}. n = 0 gives NaN.
    """
    if n == 0:
        return {"delta": math.nan, "interval": None, "p": math.nan, "lost": lost, "won": won, "n": n}
    p = float(stats.binomtest(min(lost, won), lost + won, 0.5).pvalue) if lost + won else 1.0
    b, c, m = lost + 0.5, won + 0.5, n + 2.0
    centre, spread = (c - b) / m, 1.959963984540054 * math.sqrt((b + c) - (c - b) ** 2 / m) / m
    return {
        "delta": (won - lost) / n, "interval": [centre - spread, centre + spread], "p": p,
        "lost": lost, "won": won, "n": n,
    }  # fmt: skip


def evidence(run: Run, from_step: Step, to_step: int) -> list[dict[str, Any]]:
    """Everything measured that is not likelihood, between the two steps; empty where nothing was.

    Each entry: {"what", "split", "kind": "score" | "correct" | "unfinished" | "empty" | "review", "method",
    "from_step", "to_step", "from", "to", "delta", "interval", "p", "n", "better": "higher" | "lower"}; `judge` says its
    direction.
    """
    return [*_scores(run, from_step, to_step), *_answers(run, from_step, to_step), *_reviews(run, from_step, to_step)]


def _scores(run: Run, from_step: Step, to_step: int) -> list[dict[str, Any]]:
    history = run.history
    rows = history.loc[history["name"].astype(str).str.startswith(SCORE) & history["value"].notna()]
    start = 0 if from_step == REFERENCE else int(from_step)
    found: list[dict[str, Any]] = []
    for (name, split), group in rows.groupby(["name", "split"]):
        ordered = group.sort_values("step")
        at_from, at_to = _nearest(ordered, start), _nearest(ordered, to_step)
        if int(at_from["step"]) >= int(at_to["step"]):
            continue
        entry: dict[str, Any] = {
            "what": str(name).removeprefix(SCORE), "split": str(split), "kind": "score", "better": "higher",
            "from_step": int(at_from["step"]), "to_step": int(at_to["step"]),
            "from": float(at_from["value"]), "to": float(at_to["value"]),
            "delta": float(at_to["value"] - at_from["value"]), "interval": None, "p": None, "n": None,
            "method": "two numbers without their n: no interval",
        }  # fmt: skip
        n0, n1 = float(at_from["weight"]), float(at_to["weight"])
        if n0 > 0 and n1 > 0 and 0.0 <= entry["from"] <= 1.0 and 0.0 <= entry["to"] <= 1.0:
            entry["interval"] = list(newcombe_interval(entry["from"], n0, entry["to"], n1))
            entry["n"], entry["method"] = int(min(n0, n1)), "independent proportions (Newcombe)"
        found.append(entry)
    return found


def _nearest(rows: pd.DataFrame, step: int) -> pd.Series[Any]:
    """The row of `rows` (ascending steps) nearest to `step`; the earlier one of two."""
    at = int(np.abs(rows["step"].to_numpy() - step).argmin())
    return rows.iloc[at]


def _answers(run: Run, from_step: Step, to_step: int) -> list[dict[str, Any]]:
    if not run.has("outputs"):
        return []
    outputs = run.outputs
    policy = outputs.loc[(outputs["model"] == "policy") & (outputs["sample"] == 0)]
    steps = sorted({int(s) for s in policy["step"]})
    if not steps:
        return []
    last = min(steps, key=lambda s: abs(s - to_step))
    after = policy.loc[policy["step"] == last]
    start = 0 if from_step == REFERENCE else int(from_step)
    first = min(steps, key=lambda s: abs(s - start))
    before = policy.loc[policy["step"] == first]
    reference = outputs.loc[outputs["model"].isin(["ref", "sft"]) & (outputs["sample"] == 0)]
    if (from_step == REFERENCE or first >= last) and len(reference):
        before = reference.loc[reference["model"] == reference["model"].iloc[0]]
        first = int(before["step"].iloc[0])
    elif first >= last:
        return []
    both = before.merge(after, on=["prompt_id", "decoding_hash"], suffixes=("_0", "_1"))
    both = both.drop_duplicates("prompt_id")
    found = []
    for kind, what, better, old, new in _verdicts(both):
        known = ~(np.isnan(old) | np.isnan(new))
        old, new = old[known], new[known]
        if not old.size:
            continue
        entry = {
            "what": what, "split": "outputs", "kind": kind, "better": better, "from_step": first, "to_step": last,
            "from": float(old.mean()), "to": float(new.mean()),
        }  # fmt: skip
        if np.isin(old, (0.0, 1.0)).all() and np.isin(new, (0.0, 1.0)).all():
            lost, won = int(((old == 1) & (new == 0)).sum()), int(((old == 0) & (new == 1)).sum())
            entry |= {**mcnemar(lost, won, old.size), "method": "same prompts, McNemar"}
        else:
            entry |= _paired_mean(new - old)
        found.append(entry)
    return found


def _reviews(run: Run, from_step: Step, to_step: int) -> list[dict[str, Any]]:
    """What people preferred, blind, between the two looks: a win rate against the 0.5 of no preference; [] below
    8 prompts."""
    start = 0 if from_step == REFERENCE else int(from_step)
    return [
        {
            "what": f"people's blind preference for step {c['b_step']} over {c['a']}", "split": "review",
            "kind": "review", "better": "higher", "from_step": c["a_step"], "to_step": c["b_step"],
            "from": 0.5, "to": c["win_rate"], "delta": c["win_rate"] - 0.5,
            "interval": [c["low"] - 0.5, c["high"] - 0.5], "p": c["p"], "n": c["n"],
            "method": "blind pairwise verdicts, ties half (Wilson)",
        }
        for c in reviewed(run)
        if c["n"] >= LEAST_REVIEWED
        and c["b_step"] == to_step
        and c["a_step"] == start
        and (c["a_model"] == "policy" or start == 0)
    ]  # fmt: skip


def reviewed(run: Run) -> list[dict[str, Any]]:
    """Comparisons that people judged whose later look is the policy's (`dpo_diag.review.results`); [] without any."""
    if not (run.path / "review").is_dir():
        return []
    return [c for c in review_results(run)["comparisons"] if c["b_model"] == "policy"]


def _verdicts(both: pd.DataFrame) -> list[tuple[str, str, str, Any, Any]]:
    """(kind, what, which is better, before, after) of every yes/no that outputs answer, as float arrays."""

    def flags(values: pd.Series[Any], test: Any) -> Any:
        return values.map(lambda v: math.nan if v is None or v != v else float(test(v))).to_numpy(dtype=np.float64)

    def ended(reason: str) -> bool:
        return reason == "length"

    def blank(text: str) -> bool:
        return not text.strip()

    return [
        ("correct", "answers that the checker accepts", "higher",
         both["correct_0"].to_numpy(dtype=np.float64), both["correct_1"].to_numpy(dtype=np.float64)),
        ("unfinished", "answers cut off by the length limit", "lower",
         flags(both["finish_reason_0"], ended), flags(both["finish_reason_1"], ended)),
        ("empty", "empty answers", "lower", flags(both["text_0"], blank), flags(both["text_1"], blank)),
    ]  # fmt: skip


def _paired_mean(change: Any) -> dict[str, Any]:
    """Mean of paired differences with a t interval; no interval below 8 prompts."""
    n, mean = int(change.size), float(change.mean())
    if n < 8:
        return {"delta": mean, "interval": None, "p": None, "n": n, "method": "same prompts, too few for an interval"}
    error = float(change.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else 1.0
    return {"delta": mean, "interval": [mean - half, mean + half], "p": p, "n": n, "method": "same prompts, paired t"}


def judge(entry: dict[str, Any], benign_margin: float, least_harm: float) -> str:
    """What one piece of evidence says: "worse", "better", "no_worse" or "unclear".

    worse or better: the interval excludes 0 in that direction (and so does the exact test, where there is one: the two
    can differ in small samples), and a worsening is at least `least_harm` (a share);
    no_worse: the interval excludes a worsening of `benign_margin` or more; unclear: none of these, or no interval.
    """
    bounds = entry.get("interval")
    if bounds is None:
        return "unclear"
    sign = 1.0 if entry["better"] == "higher" else -1.0
    low, high = sorted((sign * bounds[0], sign * bounds[1]))
    delta = sign * entry["delta"]
    p = entry.get("p")
    told = p is None or p < 0.05
    if told and high < 0.0 and delta <= -least_harm:
        return "worse"
    if told and low > 0.0:
        return "better"
    return "no_worse" if low > -benign_margin else "unclear"
