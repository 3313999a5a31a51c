"""The answers as one wide table: trackers show a table per step, which nobody can compare."""

from __future__ import annotations

import pandas as pd

from dpo_diag.text import cut, visible

MAX_CHARS = 10_000


def outputs_table(outputs: pd.DataFrame) -> pd.DataFrame:
    """One row per prompt: prompt_id, prompt, tags, reference, then one column of answers per checkpoint.

    Columns are the other models (`ref`, `sft`, ...) first, then `step N` of the policy in order. Only the first sample
    (sample 0) is taken. All cells are text; "" where a checkpoint has no answer; hidden characters are shown and longer
    answers than 10,000 characters are cut. Empty outputs give the four first columns and no row.
    """
    first = ["prompt_id", "prompt", "tags", "reference"]
    rows = outputs.loc[outputs["sample"].fillna(0) == 0] if len(outputs) else outputs
    if rows.empty:
        return pd.DataFrame(columns=first)
    rows = rows.drop_duplicates(["step", "model", "prompt_id"], keep="last")
    policy = rows["model"].astype(str) == "policy"
    named = rows.assign(
        column=[f"step {s}" if p else str(m) for s, m, p in zip(rows["step"], rows["model"], policy, strict=True)],
        _policy=policy,
    )
    order = named.sort_values(["_policy", "model", "step"], kind="stable")["column"].unique()
    wide = named.drop_duplicates(["prompt_id", "column"], keep="last").pivot(
        index="prompt_id", columns="column", values="text"
    )
    about = rows.drop_duplicates("prompt_id").set_index("prompt_id")[["prompt", "tags", "reference"]]
    about["tags"] = [
        ", ".join(map(str, t)) if t is not None and not isinstance(t, float) else "" for t in about["tags"]
    ]
    table = about.join(wide[list(order)]).reset_index()
    return table.map(lambda cell: visible(cut(cell, MAX_CHARS)) if isinstance(cell, str) else "")
