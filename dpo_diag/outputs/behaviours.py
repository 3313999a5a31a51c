"""After each look one sentence and one table: which behaviours moved toward what is wanted, which away, by tag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.outputs.looks import Answers, Look
from dpo_diag.outputs.stats import SEED, benjamini_hochberg, bootstrap_means, mean_interval, paired_change

ALL = "(all)"


@dataclass(frozen=True)
class Behaviour:
    """Something wanted of answers.

    Attributes:
        name: shown in the table.
        column: column of features or scores.
        sign: +1 if more is wanted; -1 if less of the column, a share in [0, 1]: then the table holds 1 - share.
        tags: prompts it is asked of; empty for all.
    """

    name: str
    column: str
    sign: int
    tags: tuple[str, ...] = ()


WANTED = (
    Behaviour("right answers", "correct", +1),
    Behaviour("close to the reference (token F1)", "token_f1", +1),
    Behaviour("the format that was asked for", "valid_format", +1),
    Behaviour("refuses what it must", "refusal", +1, ("must_refuse",)),
    Behaviour("answers what it may", "refusal", -1, ("must_answer",)),
    Behaviour("careful when unsure", "hedge", +1, ("must_be_careful", "out_of_distribution")),
    Behaviour("ends by itself", "truncated", -1),
    Behaviour("no loops", "loop", -1),
    Behaviour("answers in the asker's language", "language_switch", -1),
    Behaviour("says something", "empty", -1),
)


def _tags(answers: Answers) -> dict[str, list[str]]:
    """tag -> prompt ids; key=value tags (probe=..., format=...) are fields, not kinds of prompt, and stay out."""
    found: dict[str, list[str]] = {}
    first = answers.frame.drop_duplicates("prompt_id").set_index("prompt_id")
    if "tags" not in first:
        return {}
    for prompt_id in answers.prompt_ids:
        tags = first["tags"][prompt_id]
        for tag in tags if tags is not None and not isinstance(tags, float) else ():
            if "=" not in tag:
                found.setdefault(str(tag), []).append(prompt_id)
    return found


def _column(values: pd.DataFrame, answers: Answers, look: Look, column: str) -> pd.Series:
    frame = answers.frame
    rows = frame[(frame["model"] == look.model) & (frame["step"] == look.step)]
    return pd.Series(values.loc[rows.index, column].to_numpy(dtype=float), index=rows["prompt_id"].to_numpy())


def behaviour_table(
    answers: Answers, values: pd.DataFrame, baseline: Look, looks: list[Look], *, by_tag: bool = True
) -> pd.DataFrame:
    """Per look, behaviour and tag: how many prompts moved toward what is wanted, away from it, or stayed.

    Args:
        answers: the looks.
        values: features and answer scores, on the index of `answers.frame`.
        baseline: what each look is held against.
        looks: the looks to judge.
        by_tag: also by tag, not only over all prompts.

    Returns:
        Columns model, step, behaviour, tag, n, toward, away, unchanged (prompts), before, after (means; of 1 - share
        where less is wanted), delta (after - before, + is wanted), low, high (95 %), p, q (Benjamini-Hochberg within
        a look), verdict: toward | away | unchanged (q above 0.05). A behaviour that no prompt can show is left out.
    """
    groups = {ALL: list(answers.prompt_ids)} | (_tags(answers) if by_tag else {})
    rows = []
    for look in looks:
        if look == baseline:
            continue
        own: list[dict[str, Any]] = []
        for behaviour in WANTED:
            if behaviour.column not in values:
                continue
            before = _column(values, answers, baseline, behaviour.column)
            after = _column(values, answers, look, behaviour.column)
            for tag, ids in groups.items():
                everywhere = tag != ALL and len(ids) == len(answers.prompt_ids)
                if tag not in behaviour.tags if behaviour.tags else everywhere:
                    continue  # a tag that all prompts have says what (all) says
                common = [i for i in ids if i in before.index and i in after.index]
                x, y = before[common].to_numpy(), after[common].to_numpy()
                if behaviour.sign < 0:  # shares all: the share that does what the name says
                    x, y = 1 - x, 1 - y
                change = paired_change(x, y)
                if not change.n:
                    continue
                known = np.isfinite(x) & np.isfinite(y)
                x, y = x[known], y[known]
                own.append(
                    {
                        "model": look.model,
                        "step": look.step,
                        "behaviour": behaviour.name,
                        "tag": tag,
                        "n": change.n,
                        "toward": int((y > x).sum()),
                        "away": int((y < x).sum()),
                        "unchanged": int((y == x).sum()),
                        "before": float(x.mean()),
                        "after": float(y.mean()),
                        "delta": change.delta,
                        "low": change.low,
                        "high": change.high,
                        "p": change.p,
                    }
                )
        q_values = benjamini_hochberg([row["p"] for row in own])
        for row, q in zip(own, q_values, strict=True):
            row["q"] = float(q)
            moved = "toward" if row["delta"] > 0 else "away"
            row["verdict"] = moved if q <= 0.05 and row["delta"] != 0 else "unchanged"
        rows += own
    columns = [
        "model", "step", "behaviour", "tag", "n", "toward", "away", "unchanged", "before", "after", "delta", "low",
        "high", "p", "q", "verdict",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def primary_score(values: pd.DataFrame) -> str | None:
    """The score that tag gaps are told in: the checker's verdict, else token F1, else None."""
    for name in ("correct", "token_f1"):
        if name in values and values[name].notna().any():
            return name
    return None


def tag_table(answers: Answers, values: pd.DataFrame, looks: list[Look]) -> pd.DataFrame:
    """Per look and tag: the primary score inside the tag, outside it, and the gap inside - outside, with intervals.

    A model that is good only where a question looks like the training data shows it as a gap of the tag paraphrased
    or out_of_distribution. Columns model, step, tag, metric, n, value, low, high, n_rest, rest, gap, gap_low,
    gap_high (bootstrap over prompts). No rows without a score or without tags.
    """
    metric = primary_score(values)
    columns = [
        "model", "step", "tag", "metric", "n", "value", "low", "high", "n_rest", "rest", "gap", "gap_low", "gap_high",
    ]  # fmt: skip
    rows = []
    if metric is not None:
        for look in looks:
            score = _column(values, answers, look, metric).dropna()
            for tag, ids in _tags(answers).items():
                inside = score[score.index.isin(ids)].to_numpy()
                outside = score[~score.index.isin(ids)].to_numpy()
                if not inside.size or not outside.size:
                    continue  # a tag that all prompts have tells nothing apart
                own, rest = mean_interval(inside), mean_interval(outside)
                gap, low, high = _gap(inside, outside)
                rows.append(
                    {"model": look.model, "step": look.step, "tag": tag, "metric": metric, "n": own.n,
                     "value": own.value, "low": own.low, "high": own.high, "n_rest": rest.n, "rest": rest.value,
                     "gap": gap, "gap_low": low, "gap_high": high}
                )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _gap(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float, float]:
    """Difference of two means of different prompts, and its 95 % interval from resampling each side."""
    drawn = bootstrap_means(inside, seed=SEED) - bootstrap_means(outside, seed=SEED + 1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(inside.mean() - outside.mean()), float(low), float(high)


def sentence(table: pd.DataFrame, baseline: Look, look: Look) -> str:
    """One sentence on a look: what moved toward what is wanted since the baseline, and what moved away."""
    own = table[(table["model"] == look.model) & (table["step"] == look.step)]
    if own.empty:
        return f"Nothing tells whether {look.label} behaves better than {baseline.label}: no score, tag or format."
    parts = []
    for verdict, words_ in (("toward", "moved toward what is wanted in"), ("away", "moved away from it in")):
        moved = own[own["verdict"] == verdict]
        # All prompts before single tags; a tag that only repeats the whole is left out.
        whole = set(moved.loc[moved["tag"] == ALL, "behaviour"])
        shown = moved[(moved["tag"] == ALL) | ~moved["behaviour"].isin(whole)]
        told = [
            f"{row['behaviour']}{'' if row['tag'] == ALL else ' (' + row['tag'] + ')'} "
            f"{row['before']:.2f} -> {row['after']:.2f} (n {row['n']})"
            for _, row in shown.head(4).iterrows()
        ]
        if told:
            parts.append(f"{words_} {'; '.join(told)}")
    tested = own["behaviour"].nunique()
    if not parts:
        return f"From {baseline.label} to {look.label}: none of {tested} behaviours moved beyond chance."
    return f"From {baseline.label} to {look.label} the model {', and '.join(parts)}."
