"""What the checkpoints wrote for the fixed prompts: changed answers first, each against the one before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpo_diag.outputs.diff import Piece, word_diff
from dpo_diag.records import Run
from dpo_diag.report.text import clean, one_line
from dpo_diag.text import plural

BUDGET = 2_400_000
"""Characters of answers on a page: what 200 prompts x 20 checkpoints may take of the 5 MB that a page may weigh."""
OVERHEAD, ROOM = 300, 1_400_000
"""Characters of markup around one answer, and what all of it may take."""
LIMITS = (2_000, 1_200, 800, 500, 350, 250, 160, 100)
OPEN = 5
"""Prompts whose answers are unfolded when the page opens."""
COLUMNS = ["prompt_id", "prompt", "tags", "reference", "model", "step", "last_step", "text", "correct", "changes"]


@dataclass(frozen=True)
class Answer:
    """One answer over a stretch of checkpoints, as pieces against the one before it; no piece for an empty one."""

    at: str
    verdict: str
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Prompt:
    """One prompt with its answers; `marks` are right or wrong, answer by answer."""

    rank: str
    title: str
    text: str
    tags: str
    reference: str
    marks: str
    is_open: bool
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Prompts:
    """What the page shows of all prompts: those with changed answers, those without, and a summary in words."""

    changed: tuple[Prompt, ...]
    same: tuple[Prompt, ...]
    summary: str


def answers_frame(run: Run) -> pd.DataFrame:
    """One row per stretch of checkpoints at which a prompt's first answer stayed the same.

    Columns: prompt_id, prompt, tags (text), reference, model, step, last_step, text, correct (mean over the stretch,
    NaN without a checker), changes (how often the policy's answer changed). Prompts ordered by changes, most first;
    within one: other models (ref, sft), then the policy by step. Empty without outputs. Answers of another decoding
    hash than the policy's most frequent one are left out: they are not comparable.
    """
    if not run.has("outputs"):
        return pd.DataFrame(columns=COLUMNS)
    wanted = ["step", "model", "prompt_id", "sample", "prompt", "tags", "reference", "text", "correct", "decoding_hash"]
    rows = run.read("outputs", wanted)
    rows = rows.loc[rows["sample"].fillna(0) == 0].drop_duplicates(["step", "model", "prompt_id"], keep="last")
    policy_hashes = rows.loc[rows["model"] == "policy", "decoding_hash"].dropna()
    if len(policy_hashes):
        rows = rows.loc[rows["decoding_hash"].isna() | (rows["decoding_hash"] == policy_hashes.mode().iloc[0])]
    rows = rows.assign(is_policy=rows["model"] == "policy").sort_values(
        ["prompt_id", "is_policy", "model", "step"], kind="stable", ignore_index=True
    )
    same = pd.Series(True, index=rows.index)
    for column in ("prompt_id", "model", "text"):
        same &= rows[column] == rows[column].shift()
    same &= rows["correct"].fillna(-1) == rows["correct"].shift().fillna(-1)
    groups = rows.groupby((~same).cumsum(), sort=False)
    out = groups[["prompt_id", "prompt", "reference", "model", "step", "text"]].first()
    out["last_step"], out["correct"] = groups["step"].last(), groups["correct"].mean()
    out["tags"] = groups["tags"].first().map(_tags)
    stretches = out.loc[out["model"] == "policy"].groupby("prompt_id")["text"].size() - 1
    out["changes"] = out["prompt_id"].map(stretches).fillna(0).astype(int)
    ordered = out.assign(order=-out["changes"]).sort_values(["order", "prompt_id"], kind="stable", ignore_index=True)
    return ordered[COLUMNS]


def _tags(value: Any) -> str:
    return ", ".join(str(t) for t in value) if value is not None and not isinstance(value, float) else ""


def text_limit(frame: pd.DataFrame, budget: int = BUDGET) -> int:
    """The most characters of one answer that keep the page inside its budget (a diff can show two answers)."""
    lengths = frame["text"].fillna("").str.len()
    return next((limit for limit in LIMITS if 2 * lengths.clip(upper=limit).sum() <= budget), LIMITS[-1])


def prompts(frame: pd.DataFrame) -> Prompts:
    """Every prompt that the page has room for, of `answers_frame`; the first few are open."""
    limit = text_limit(frame)
    by_prompt = [rows for _, rows in frame.groupby("prompt_id", sort=False)]
    shared = _shared([_prompt_text(rows) for rows in by_prompt])
    changed: list[Prompt] = []
    same: list[Prompt] = []
    size = 0
    for i, rows in enumerate(by_prompt):
        size += 2 * int(rows["text"].fillna("").str.len().clip(upper=limit).sum()) + OVERHEAD * len(rows)
        if size > BUDGET + ROOM:
            break
        is_changed = bool(rows["changes"].iloc[0])
        (changed if is_changed else same).append(_prompt(rows, limit, i < OPEN and not same, shared))
    n_changed = sum(bool(rows["changes"].iloc[0]) for rows in by_prompt)
    summary = (
        f"{n_changed} of {len(by_prompt)} prompts got another answer at some checkpoint; those with most come first."
    )
    if limit < LIMITS[0]:
        summary += f" Answers are cut after {limit} characters here; outputs/ holds them whole."
    left_out = len(by_prompt) - len(changed) - len(same)
    if left_out:
        summary += f" The last {left_out} prompts are left out for the page's size."
    return Prompts(tuple(changed), tuple(same), summary)


def _prompt_text(rows: pd.DataFrame) -> str:
    prompt = rows["prompt"].iloc[0]
    return clean(prompt if isinstance(prompt, str) else rows["prompt_id"].iloc[0], 1_200)


def _shared(texts: list[str]) -> int:
    """Characters that all prompts begin with, up to a line's end (a chat template's system turn); 0 for one prompt."""
    first, last = min(texts, default=""), max(texts, default="")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first.rfind("\n", 0, same) + 1


def _prompt(rows: pd.DataFrame, limit: int, is_open: bool, shared: int) -> Prompt:
    text = _prompt_text(rows)
    records = rows.to_dict("records")
    first, answers, before = records[0], [], None
    for row in records:
        answer = clean(row["text"], limit)
        is_policy = row["model"] == "policy"
        is_changed = is_policy and before is not None and before != answer
        pieces = word_diff(before, answer) if is_changed and before is not None else [Piece("same", answer)]
        if is_policy or before is None:
            before = answer
        answers.append(Answer(_at(row), _verdict(row["correct"]), pieces if answer else ()))
    correct = [row["correct"] for row in records if row["model"] == "policy" and not math.isnan(row["correct"])]
    changes, reference = int(first["changes"]), first["reference"]
    return Prompt(
        rank=plural(changes, "change") if changes else "same",
        title=one_line((text[shared:] or text)[:110], None),
        text=text,
        tags=clean(first["tags"], 80),
        reference=clean(reference, 400) if isinstance(reference, str) else "",
        marks="".join("✓" if c >= 0.5 else "✗" for c in correct),
        is_open=is_open,
        answers=tuple(answers),
    )


def _at(row: Mapping[Any, Any]) -> str:
    if row["model"] != "policy":
        return clean(row["model"])
    return f"step {row['step']}" if row["step"] == row["last_step"] else f"steps {row['step']}–{row['last_step']}"


def _verdict(correct: float) -> str:
    return "" if math.isnan(correct) else " ✓ right" if correct >= 0.5 else " ✗ wrong"
