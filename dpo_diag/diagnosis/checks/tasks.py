"""What the model does, not what it likes: DVG013, 018, 019, 025. Only these can make a verdict say harm."""

from __future__ import annotations

import re
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks.base import Missing, Outcome, Thresholds, cannot_tell, silent, speaks
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.falls import chosen_falls
from dpo_diag.diagnosis.checks.stats import Interval, paired_proportion_change, proportion_change
from dpo_diag.diagnosis.evidence import reviewed
from dpo_diag.records.metrics import wilson_interval

_SEEN = re.compile(r"train|template|like|(?<!un)seen|familiar", re.IGNORECASE)
_UNSEEN = re.compile(r"paraphras|held|unseen|novel|fresh|test|reword|probe", re.IGNORECASE)


def _change(rows: pd.DataFrame, t: Thresholds, first: int = 0, last: int = -1) -> Interval:
    """Change of a score between two rows of its curve; the n of each row is its weight.

    The questions are taken as independent samples: with the same questions at both steps the interval is too wide,
    never too narrow (answers of one model family agree), and per-answer records replace it where they exist.
    """
    a, b = rows.iloc[first], rows.iloc[last]
    return proportion_change(
        float(a["value"]), float(a["weight"]), float(b["value"]), float(b["weight"]), t["confidence_scores"]
    )


def _is_proportion(rows: pd.DataFrame) -> bool:
    return bool(rows["value"].between(0, 1).all())


def _answer_curve(ctx: CheckContext, tag: re.Pattern[str] | None = None) -> pd.DataFrame:
    """correct per prompt (rows) and step (columns) of the policy's first sample; prompts present at every step."""
    answers = ctx.answers()
    answers = answers[answers["sample"].fillna(0) == 0]
    if tag is not None:
        match = answers["tags"].map(lambda tags: tags is not None and any(tag.search(str(x)) for x in tags))
        answers = answers[match.astype(bool)]
    if answers.empty:
        raise Missing("no checked answers with this tag")
    wide = answers.pivot_table(index="prompt_id", columns="step", values="correct", aggfunc="first").dropna()
    if wide.shape[1] < 2 or wide.shape[0] < 3:
        raise Missing("checked answers at fewer than two steps")
    return wide


def score_changes(ctx: CheckContext, t: Thresholds) -> list[dict[str, Any]]:
    """Change of every task score from the first to the last step, with its interval; answers paired where recorded.

    Raises:
        Missing: no score at two steps with its n, and no checked answers.
    """
    found: list[dict[str, Any]] = []
    wide = ctx.maybe(lambda: _answer_curve(ctx))
    if wide is not None:
        change = paired_proportion_change(wide.iloc[:, 0], wide.iloc[:, -1], t["confidence_scores"])
        found.append({"score": "correct answers", "split": "outputs", "from": float(wide.iloc[:, 0].mean()),
                      "to": float(wide.iloc[:, -1].mean()), "n": len(wide), "paired": True, "change": change,
                      "steps": [int(wide.columns[0]), int(wide.columns[-1])]})  # fmt: skip
    for score, split, rows in ctx.score_curves():
        if _is_proportion(rows):
            found.append({"score": score, "split": split, "from": float(rows["value"].iloc[0]),
                          "to": float(rows["value"].iloc[-1]), "n": float(rows["weight"].iloc[-1]), "paired": False,
                          "change": _change(rows, t), "steps": [int(rows["step"].iloc[0]), int(rows["step"].iloc[-1])],
                          })  # fmt: skip
    if not found:
        raise Missing("no task score at two steps with its n, and no checked answers")
    return found


def preferences(ctx: CheckContext, t: Thresholds) -> list[dict[str, Any]]:
    """People's blind preference for the last step that they judged over earlier looks (`dpo-diag review`); [] if none.

    `change` is the last step's win rate minus the other's (ties half), with Wilson's interval at the scores' confidence
    corrected for the number of looks compared.
    """
    found = reviewed(ctx.run)
    last = max((c["b_step"] for c in found), default=0)
    found = [c for c in found if c["b_step"] == last]
    out = []
    for c in found:
        level = 1 - (1 - t["confidence_scores"]) / len(found)
        low, high = wilson_interval(c["win_rate"] * c["n"], c["n"], NormalDist().inv_cdf(0.5 + level / 2))
        change = Interval(2 * c["win_rate"] - 1, 2 * low - 1, 2 * high - 1, c["n"])
        out.append({"score": f"people's preference against {c['a']}", "split": "review", "model": c["a_model"],
                    "steps": [c["a_step"], last], "from": 1 - c["win_rate"], "to": c["win_rate"], "n": c["n"],
                    "paired": True, "change": change})  # fmt: skip
    return out


def score_fell(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG025: a task score fell beyond its interval."""
    changes = score_changes(ctx, t)
    fell = [c for c in changes if c["change"].below]
    if fell:
        c = min(fell, key=lambda c: c["change"].value)
        return speaks(
            f"{c['score']} ({c['split']}) fell from {c['from']:.3f} to {c['to']:.3f} (n {c['n']:.0f}), change "
            f"{c['change']}",
            scores=changes,
        )
    wide = [c for c in changes if c["change"].low < -t["benign_margin"] and c["change"].value < 0]
    if wide:
        return cannot_tell(f"{wide[0]['score']} changed by {wide[0]['change']}: inside its noise", scores=changes)
    return silent("no task score fell", scores=changes)


def benign(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG018: chosen fell in likelihood, and the task score or the outputs did not get worse."""
    falls = [f for f in chosen_falls(ctx, t) if f.material(t) and f.delta.below]
    if not falls:
        return silent("chosen did not fall, so there is nothing to excuse")
    preferred = preferences(ctx, t)
    changes = ctx.maybe(lambda: score_changes(ctx, t)) or []
    if not changes and not preferred:
        changes = score_changes(ctx, t)
    evidence: dict[str, Any] = {"scores": changes, "review": preferred, "fall": falls[0].evidence()}
    if any(c["change"].below for c in changes):
        return silent("a task score fell (DVG025)", **evidence)
    against = [c for c in preferred if c["change"].below]
    if against:
        return silent(f"people preferred the earlier answers: {against[0]['change']} (DVG019)", **evidence)
    # A review of some dozens of prompts can hardly exclude a small fall: beside scores, it only speaks against them.
    changes = changes or preferred
    safe = [c for c in changes if c["change"].low >= -t["benign_margin"]]
    if len(safe) == len(changes):
        c = min(changes, key=lambda c: c["change"].low)
        return speaks(
            f"chosen fell by {-falls[0].delta.value:.3g} {falls[0].unit.replace('_', ' ')}, and {c['score']} did not "
            f"get worse: {c['from']:.3f} to {c['to']:.3f}, change {c['change']} (n {c['n']:.0f})",
            **evidence,
        )
    worst = min(changes, key=lambda c: c["change"].low)
    return cannot_tell(
        f"{worst['score']} changed by {worst['change']}: a fall of {t['benign_margin']:.0%} is not excluded", **evidence
    )


def memorisation(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG013: better on questions like the training ones than on paraphrased or held-out ones, and parting further."""
    seen: list[dict[str, Any]] = []
    unseen: list[dict[str, Any]] = []
    for tag, kind in ((_SEEN, seen), (_UNSEEN, unseen)):
        wide = ctx.maybe(lambda tag=tag: _answer_curve(ctx, tag))  # type: ignore[misc]
        if wide is not None:
            kind.append({"source": "outputs", "from": float(wide.iloc[:, 0].mean()),
                         "to": float(wide.iloc[:, -1].mean()), "n": len(wide),
                         "change": paired_proportion_change(wide.iloc[:, 0], wide.iloc[:, -1],
                                                            t["confidence_scores"])})  # fmt: skip
    if not seen or not unseen:
        seen, unseen = [], []
        for score, split, rows in ctx.score_curves():
            if not _is_proportion(rows):
                continue
            item = {"source": f"{score} on {split}", "from": float(rows["value"].iloc[0]),
                    "to": float(rows["value"].iloc[-1]), "n": float(rows["weight"].iloc[-1]),
                    "change": _change(rows, t)}  # fmt: skip
            if _UNSEEN.search(split):
                unseen.append(item)
            elif _SEEN.search(split):
                seen.append(item)
    if not seen or not unseen:
        raise Missing("needs scores on training-like and on paraphrased or held-out questions, at two steps")
    s, u = seen[0], min(unseen, key=lambda x: x["change"].value)
    a, b = s["change"], u["change"]
    parted = a.value - b.value
    # Two independent intervals: the difference's half widths add in quadrature.
    half = float(np.hypot(a.value - a.low, b.high - b.value))
    other = float(np.hypot(a.high - a.value, b.value - b.low))
    gap = Interval(parted, parted - half, parted + other, int(min(a.n, b.n)))
    evidence: dict[str, Any] = {"training_like": s, "other": u, "gap_of_changes": gap}
    if gap.above and gap.value >= t["memorisation_min_gap"]:
        return speaks(
            f"{s['source']} changed by {a.value:+.3f}, {u['source']} by {b.value:+.3f}: the gain does not carry over",
            **evidence,
        )
    if gap.value >= t["memorisation_min_gap"]:
        return cannot_tell(f"the two scores parted by {gap}: inside the noise", **evidence)
    return silent("training-like and other questions moved alike", **evidence)


def best_not_last(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG019: an earlier checkpoint scores better than the last one, with an interval (corrected for looking)."""
    found: list[dict[str, Any]] = []
    wide = ctx.maybe(lambda: _answer_curve(ctx))
    if wide is not None and wide.shape[1] >= 3:
        means = wide.mean(axis=0)
        best = int(np.argmax(means.to_numpy()))
        level = 1 - (1 - t["confidence_scores"]) / (wide.shape[1] - 1)
        change = paired_proportion_change(wide.iloc[:, best], wide.iloc[:, -1], level)
        found.append({"score": "correct answers", "best_step": int(wide.columns[best]), "best": float(means.iloc[best]),
                      "last": float(means.iloc[-1]), "n": len(wide), "change": change,
                      "is_last": best == wide.shape[1] - 1})  # fmt: skip
    for score, split, rows in ctx.score_curves(3):
        if not _is_proportion(rows):
            continue
        best = int(np.argmax(rows["value"].to_numpy()))
        level = 1 - (1 - t["confidence_scores"]) / (len(rows) - 1)
        change = _change(rows, {**t, "confidence_scores": level}, best, -1)
        found.append({"score": f"{score} on {split}", "best_step": int(rows["step"].iloc[best]),
                      "best": float(rows["value"].iloc[best]), "last": float(rows["value"].iloc[-1]),
                      "n": float(rows["weight"].iloc[-1]), "change": change,
                      "is_last": best == len(rows) - 1})  # fmt: skip
    for c in preferences(ctx, t):
        if c["model"] == "policy":
            found.append({"score": c["score"], "best_step": c["steps"][0], "best": c["from"], "last": c["to"],
                          "n": c["n"], "change": c["change"], "is_last": c["change"].value >= 0})  # fmt: skip
    if not found:
        raise Missing("no task score at three steps with its n: likelihoods alone do not rank checkpoints")
    worse = [f for f in found if f["change"].below]
    if worse:
        f = min(worse, key=lambda f: f["change"].value)
        return speaks(
            f"{f['score']} was {f['best']:.3f} at step {f['best_step']} and is {f['last']:.3f} at the last: "
            f"{f['change']} (n {f['n']:.0f})",
            scores=found,
        )
    unsure = [f for f in found if not f["is_last"] and f["change"].value < -t["benign_margin"]]
    if unsure:
        f = unsure[0]
        return cannot_tell(f"step {f['best_step']} looks better, but {f['change']} is inside its noise", scores=found)
    return silent("the last checkpoint is as good as any", scores=found)
