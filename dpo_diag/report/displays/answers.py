"""What the checkpoints wrote for the fixed prompts: changed answers first, each against the one before it."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from dpo_diag.outputs.diff import word_diff
from dpo_diag.records import Run
from dpo_diag.report.numbers import number
from dpo_diag.report.text import clean

BUDGET = 2_400_000
"""Characters of answers on a page: what 200 prompts x 20 checkpoints may take of the 5 MB that a page may weigh."""
OVERHEAD, ROOM = 300, 1_400_000
"""Characters of markup around one answer, and what all of it may take."""
LIMITS = (2_000, 1_200, 800, 500, 350, 250, 160, 100)
OPEN = 5
"""Prompts whose answers are unfolded when the page opens."""
COLUMNS = ["prompt_id", "prompt", "tags", "reference", "model", "step", "last_step", "text", "correct", "changes"]


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
    rows = rows.assign(_policy=rows["model"] == "policy").sort_values(
        ["prompt_id", "_policy", "model", "step"], kind="stable", ignore_index=True
    )
    same = (
        (rows["prompt_id"] == rows["prompt_id"].shift())
        & (rows["model"] == rows["model"].shift())
        & (rows["text"] == rows["text"].shift())
        & (rows["correct"].fillna(-1) == rows["correct"].shift().fillna(-1))
    )
    groups = rows.groupby((~same).cumsum(), sort=False)
    out = groups[["prompt_id", "prompt", "reference", "model", "step", "text"]].first()
    out["last_step"], out["correct"] = groups["step"].last(), groups["correct"].mean()
    out["tags"] = groups["tags"].first().map(_tags)
    stretches = out.loc[out["model"] == "policy"].groupby("prompt_id")["text"].size() - 1
    out["changes"] = out["prompt_id"].map(stretches).fillna(0).astype(int)
    order = out.groupby("prompt_id", sort=False)["changes"].transform("first")
    out = out.assign(_order=-order).sort_values(["_order", "prompt_id"], kind="stable", ignore_index=True)
    return out[COLUMNS]


def _tags(value: Any) -> str:
    return ", ".join(str(t) for t in value) if value is not None and not isinstance(value, float) else ""


def marked_diff(before: str, after: str) -> Markup:
    """`after` with what was added as <ins> and what was removed as <del>, word by word."""
    tags = {"added": Markup("<ins>{}</ins>"), "removed": Markup("<del>{}</del>"), "same": Markup("{}")}
    return Markup("").join(tags[piece.kind].format(piece.text) for piece in word_diff(before, after))


def text_limit(frame: pd.DataFrame, budget: int = BUDGET) -> int:
    """The most characters of one answer that keep the page inside its budget (a diff can show two answers)."""
    lengths = frame["text"].fillna("").str.len()
    return next((limit for limit in LIMITS if 2 * lengths.clip(upper=limit).sum() <= budget), LIMITS[-1])


def draw_answers(frame: pd.DataFrame) -> Markup:
    """One folded block per prompt with its answers in order; the first few are open."""
    limit = text_limit(frame)
    blocks, same, shown = [], [], 0
    prompts = list(frame.groupby("prompt_id", sort=False))
    shared = _shared([_prompt(rows.iloc[0]) for _, rows in prompts])
    for i, (_, rows) in enumerate(prompts):
        shown += 2 * int(rows["text"].fillna("").str.len().clip(upper=limit).sum()) + OVERHEAD * len(rows)
        if shown > BUDGET + ROOM:
            break
        (blocks if rows["changes"].iloc[0] else same).append(_block(rows, limit, i < OPEN and not same, shared))
    changed = sum(rows["changes"].iloc[0] > 0 for _, rows in prompts)
    head = f"{changed} of {len(prompts)} prompts got another answer at some checkpoint; those with most come first."
    if limit < LIMITS[0]:
        head += f" Answers are cut after {limit} characters here; outputs/ holds them whole."
    left_out = len(prompts) - len(blocks) - len(same)
    if left_out:
        head += f" The last {left_out} prompts are left out for the page's size."
    if same:
        blocks.append(
            Markup(
                '<details id="same"><summary>{} prompts got the same answer throughout</summary>{}</details>'
            ).format(len(same), Markup("").join(same))
        )
    tools = Markup(
        '<p class="tools"><label>Find <input type="search" id="find" placeholder="text or tag"></label> '
        '<button type="button" id="open-all">Open all</button> <button type="button" id="close-all">Close all</button> '
        '<span id="found" role="status"></span></p>'
    )
    key = Markup('<p class="small">Against the answer before: <ins>added</ins> <del>removed</del>.</p>')
    return Markup('<p>{}</p>{}{}<div id="answers">{}</div>').format(head, tools, key, Markup("").join(blocks))


def _prompt(row: pd.Series) -> str:
    return clean(row["prompt"] if isinstance(row["prompt"], str) else row["prompt_id"], 1_200)


def _shared(prompts: list[str]) -> int:
    """Characters that all prompts begin with, up to a line's end (a chat template's system turn); 0 for one prompt."""
    first, last = min(prompts, default=""), max(prompts, default="")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first.rfind("\n", 0, same) + 1


def _block(rows: pd.DataFrame, limit: int, is_open: bool, shared: int = 0) -> Markup:
    first = rows.iloc[0]
    prompt = _prompt(first)
    changes = int(first["changes"])
    policy = rows.loc[rows["model"] == "policy"]
    strip = "".join("✓" if c >= 0.5 else "✗" for c in policy["correct"] if not math.isnan(c))
    items, before = [], None
    for row in rows.itertuples(index=False):
        text = clean(row.text, limit)
        body = escape(text) if before is None or row.model != "policy" or before == text else marked_diff(before, text)
        if row.model == "policy" or before is None:
            before = text
        at = f"step {row.step}" if row.step == row.last_step else f"steps {row.step}–{row.last_step}"
        at = at if row.model == "policy" else clean(row.model)
        verdict = "" if math.isnan(row.correct) else (" ✓ right" if row.correct >= 0.5 else " ✗ wrong")
        answer = body if text else Markup("<i>empty</i>")
        items.append(
            Markup('<li><span class="at">{}<b>{}</b></span><div class="ans">{}</div></li>').format(at, verdict, answer)
        )
    tags = Markup(' <span class="tag">{}</span>').format(clean(first["tags"], 80)) if first["tags"] else ""
    wanted = first["reference"]
    reference = (
        Markup('<p class="small">Reference answer: <code>{}</code></p>').format(clean(wanted, 400))
        if isinstance(wanted, str) and wanted
        else ""
    )
    marks = Markup(' <span class="strip" title="right or wrong, answer by answer">{}</span>').format(strip)
    return Markup(
        '<details class="card prompt"{}><summary><b class="rank">{}</b> <span>{}</span>{}{}</summary>'
        '<pre class="asked">{}</pre>{}<ol class="answers">{}</ol></details>'
    ).format(
        Markup(" open") if is_open else "",
        "same" if not changes else f"{number(changes)} change{'s' if changes > 1 else ''}",
        (prompt[shared:] or prompt)[:110].replace("\n", " "),
        tags,
        marks if strip else "",
        prompt,
        reference,
        Markup("").join(items),
    )
