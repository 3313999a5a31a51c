"""For each checkpoint one sentence and one table: which behaviours moved toward what is wanted, which away, by tag."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpo_diag.outputs.answers import Answers, Checkpoint, columns_of
from dpo_diag.paired import paired_change
from dpo_diag.stats import false_discovery, mean_difference, mean_interval
from dpo_diag.thresholds import Thresholds

ALL = "(all)"
"""The tag of rows over all prompts."""
SHOWN = 4
"""Behaviours that the sentence names on each side."""


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
COLUMNS = [
    "model", "step", "behaviour", "tag", "n", "toward", "away", "unchanged", "before", "after", "delta", "low", "high",
    "p", "q", "verdict",
]  # fmt: skip
TAG_COLUMNS = [
    "model", "step", "tag", "metric", "n", "value", "low", "high", "n_rest", "rest", "gap", "gap_low", "gap_high",
]  # fmt: skip


def behaviour_table(
    answers: Answers,
    values: pd.DataFrame,
    baseline: Checkpoint,
    checkpoints: Sequence[Checkpoint],
    thresholds: Thresholds,
) -> pd.DataFrame:
    """Per checkpoint, behaviour and tag: how many prompts moved toward what is wanted, away from it, or stayed.

    Args:
        answers: the checkpoints' answers.
        values: features and answer scores, on the index of `answers.samples`.
        baseline: what each checkpoint is held against.
        checkpoints: those to judge.

    Returns:
        Columns model, step, behaviour, tag, n, toward, away, unchanged (prompts), before, after (means; of 1 - share
        where less is wanted), delta (after - before, + is wanted), low, high (at `confidence_scores`; null for few
        prompts), p, q (Benjamini-Hochberg over a checkpoint's rows), verdict: toward | away | unchanged (q above
        `answers.max_q`). A behaviour that no prompt can show is left out.
    """
    groups = {ALL: list(answers.prompt_ids)} | answers.tags()
    rows = []
    for checkpoint in checkpoints:
        if checkpoint == baseline:
            continue
        own = [
            {**checkpoint._asdict(), **row}
            for behaviour in WANTED
            if behaviour.column in values
            for row in _moves(answers, values, behaviour, baseline, checkpoint, groups, thresholds)
        ]
        for row, q in zip(own, false_discovery([row["p"] for row in own]), strict=True):
            moved = "toward" if row["delta"] > 0 else "away"
            beyond_chance = q <= thresholds["answers.max_q"] and row["delta"] != 0
            rows.append({**row, "q": float(q), "verdict": moved if beyond_chance else "unchanged"})
    return pd.DataFrame(rows, columns=COLUMNS)


def _moves(
    answers: Answers, values: pd.DataFrame, behaviour: Behaviour, baseline: Checkpoint, checkpoint: Checkpoint,
    groups: dict[str, list[str]], thresholds: Thresholds,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One behaviour's rows of `behaviour_table`, without q: over all prompts and by tag."""
    before = answers.values(values, baseline, behaviour.column)
    after = answers.values(values, checkpoint, behaviour.column)
    if behaviour.sign < 0:  # shares all: the share that does what the name says
        before, after = 1 - before, 1 - after
    both, sources = pd.DataFrame({"before": before, "after": after}).dropna(), answers.sources
    for tag, ids in groups.items():
        # A tag that all prompts have says what (all) says.
        repeats = tag != ALL and len(ids) == len(answers.prompt_ids)
        own = both.loc[both.index.isin(ids)]
        if own.empty or (tag not in behaviour.tags if behaviour.tags else repeats):
            continue
        x, y = own["before"].to_numpy(), own["after"].to_numpy()
        own_sources = sources.loc[own.index].to_numpy(dtype=object)
        change = paired_change(x, y, thresholds["confidence_scores"], own_sources)
        delta = columns_of(change.delta.with_least(thresholds["least_for_interval"]))
        yield {
            "behaviour": behaviour.name, "tag": tag, "toward": int((y > x).sum()), "away": int((y < x).sum()),
            "unchanged": int((y == x).sum()), "before": float(x.mean()), "after": float(y.mean()),
            "delta": delta.pop("value"), **delta, "p": change.p,
        }  # fmt: skip


def primary_score(values: pd.DataFrame) -> str | None:
    """The score that tag gaps are given in: the checker's verdict, else token F1, else None."""
    return next((n for n in ("correct", "token_f1") if n in values and values[n].notna().any()), None)


def tag_table(answers: Answers, values: pd.DataFrame) -> pd.DataFrame:
    """Per checkpoint and tag: the primary score inside the tag, outside it, and the gap inside - outside.

    A model that is good only where a question looks like the training data shows it as a gap of the tag paraphrased
    or out_of_distribution. Columns model, step, tag, metric, n, value, low, high, n_rest, rest, gap, gap_low,
    gap_high (95 %; Welch's over two sets of prompts). No rows without a score or without tags.
    """
    metric, by_tag = primary_score(values), answers.tags()
    rows = []
    for checkpoint in answers.checkpoints if metric is not None else ():
        score = answers.values(values, checkpoint, str(metric)).dropna()
        for tag, ids in by_tag.items():
            inside, outside = score[score.index.isin(ids)], score[~score.index.isin(ids)]
            if inside.empty or outside.empty:
                continue  # a tag that all prompts have separates nothing
            gap = mean_difference(outside, inside)
            rows.append(
                {**checkpoint._asdict(), "tag": tag, "metric": metric, **columns_of(mean_interval(inside)),
                 "n_rest": len(outside), "rest": float(outside.mean()),
                 "gap": gap.value, "gap_low": gap.low, "gap_high": gap.high}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=TAG_COLUMNS)


def sentence(table: pd.DataFrame, baseline: Checkpoint, checkpoint: Checkpoint) -> str:
    """One sentence on a checkpoint: what moved toward what is wanted since the baseline, and what moved away."""
    own = table[(table["model"] == checkpoint.model) & (table["step"] == checkpoint.step)]
    span = f"From {baseline.label} to {checkpoint.label}"
    if own.empty:
        return f"{span}: no score, tag or format shows whether the answers got better."
    parts = []
    for verdict, clause in (
        ("toward", "moved toward what is wanted in"),
        ("away", "moved away from what is wanted in"),
    ):
        moved = own[own["verdict"] == verdict]
        # All prompts before single tags; a tag that only repeats the whole is left out.
        whole = set(moved.loc[moved["tag"] == ALL, "behaviour"])
        shown = moved[(moved["tag"] == ALL) | ~moved["behaviour"].isin(whole)].head(SHOWN)
        names = [
            f"{row['behaviour']}{'' if row['tag'] == ALL else ' (' + row['tag'] + ')'} "
            f"{row['before']:.2f} → {row['after']:.2f} (n {row['n']})"
            for _, row in shown.iterrows()
        ]
        if names:
            parts.append(f"{clause} {'; '.join(names)}")
    if not parts:
        return f"{span}: none of {own['behaviour'].nunique()} behaviours moved beyond chance."
    return f"{span} the model {', and '.join(parts)}."
