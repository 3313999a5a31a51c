"""DVG027: several pairs under one pair_id, so that their rows overwrote each other or had to be told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import LISTED, Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.records.metrics import ce
from dpo_diag.records.schemas import TRAIN_SPLIT
from dpo_diag.text import number, plural
from dpo_diag.thresholds import Thresholds

_OWN_IDS = ("give each pair an id of its own, or none: the hash of its content is one",)
_ROUNDING = 1e-4
"""Relative: what float32 sums and a log's digits leave of a mean."""


def same_ids(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Asks run.json which ids were shared, and holds the logged means of each set against its recorded pairs."""
    rows = ctx.pairs.rows
    if rows.empty:
        raise Missing("the run holds no pairs")
    lost, more = _lost(ctx.logged.rows, rows)
    shared = {split: info.n_same_id for split, info in ctx.info.splits.items() if info.n_same_id}
    evidence: dict[str, Any] = {
        "lost": lost[:LISTED], "more_rows_than_ids": more, "shared": shared,
        "told_apart_by": {split: ctx.info.splits[split].told_apart_by for split in shared},
    }  # fmt: skip
    if lost:
        first = lost[0]
        outcome = speaks(
            f"on {first['split']} at step {first['step']} {plural(first['rows'], 'row')} came under "
            f"{plural(first['ids'], 'id')}: the logged {first['name']} {number(first['logged'])} lies outside of what "
            f"the recorded pairs can give ({number(first['low'])} to {number(first['high'])}), so pairs of one id "
            f"overwrote each other and are not in the records",
            severity="error", **evidence,
        )  # fmt: skip
        return replace(
            outcome, try_next=(*_OWN_IDS, "evaluate again with this version: the lost pairs are not recorded")
        )
    by_order = [split for split, how in evidence["told_apart_by"].items() if how == "order"]
    if shared:
        sets = ", ".join(f"{plural(n, 'pair')} of {split}" for split, n in shared.items())
        how = "their order tells them apart, which is a guess" if by_order else "their content tells them apart"
        return speaks(f"{sets} came under ids that other pairs had too: {how}",
                      severity="warning" if by_order else "info", **evidence)  # fmt: skip
    return silent("no two recorded pairs are known to share an id", **evidence)


def _lost(logged: pd.DataFrame, rows: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(logged means that the recorded pairs cannot give; split -> rows beyond its ids).

    A mean over w rows of which k ids were recorded is one of the k values with repeats: it lies between the mean of all
    k filled up with their smallest value and the same with the largest. Of training batches only rows that are logged
    step by step say which pairs they are about.
    """
    lost: list[dict[str, Any]] = []
    more: dict[str, int] = {}
    means = logged[logged["name"].isin(("ce/chosen", "ce/rejected")) & logged["weight"].gt(0)]
    if means.empty:
        return lost, more
    values = rows[["split", "step", "side"]].assign(ce=ce(rows["sum_logp"], rows["n_tokens"]))
    recorded = {key: of.to_numpy() for key, of in values.groupby(["split", "step", "side"], observed=True)["ce"]}
    columns = (means[name].tolist() for name in ("split", "step", "name", "value", "weight"))
    seen = set(zip(means["split"], means["step"], strict=True))
    for split, step, name, value, weight in zip(*columns, strict=True):
        known = recorded.get((split, step, name.partition("/")[2]))
        by_step = split != TRAIN_SPLIT or step == 1 or (split, step - 1) in seen
        beyond = 0 if known is None or not by_step or not np.isfinite(known).all() else round(weight) - len(known)
        if known is None or beyond <= 0:
            continue
        more[split] = max(beyond, more.get(split, 0))
        low, high = ((known.sum() + beyond * end) / (len(known) + beyond) for end in (known.min(), known.max()))
        slack = _ROUNDING * (1 + abs(value))
        if not low - slack <= value <= high + slack:
            lost.append({"split": split, "step": int(step), "name": name, "rows": len(known) + beyond,
                         "ids": len(known), "logged": value, "low": low, "high": high})  # fmt: skip
    return sorted(lost, key=lambda entry: (entry["split"] == TRAIN_SPLIT, entry["step"])), more


register(
    Check(
        code="DVG027",
        title="pairs that share a pair_id",
        says="Different pairs came under one pair_id. It is an error where the logged means show that pairs are "
        "missing in the records, a warning where only the order of rows tells them apart, a note where their content "
        "does.",
        why="Rows join by pair_id. Pairs that share one overwrite each other, and the explanation describes the one "
        "that was left: five answers that are tool calls, images or reasoning became one pair in version 0.1.0.",
        needs="pairs",
        severity="warning",
        evidence={
            "lost": "split, step, metric, rows, ids, logged mean, the smallest and largest that the records can give",
            "more_rows_than_ids": "split -> rows of an evaluation beyond its ids (identical pairs, if nothing is lost)",
            "shared": "split -> different pairs that came under an id of another one",
            "told_apart_by": "split -> content | order: what gave those pairs ids of their own",
        },
        false_alarms=("a log that was edited or joined with the pairs of another run",),
        bad=Example(
            "Five pairs were evaluated, one is recorded, and the mean of the five is not that one's.",
            fixed={"ce/chosen": [1.0, 0.9], "ce/rejected": [1.5, 1.7]},
            answers=5,
            pairs={0: ([-10.0], [-12.0]), 5: ([-9.0], [-13.0])},
        ),
        good=Example(
            "Two pairs were evaluated, one of them twice: its id is repeated, and no pair is lost.",
            fixed={"ce/chosen": [1.0, 0.9], "ce/rejected": [1.3, 1.4]},
            answers=3,
            pairs={0: ([-10.0, -10.0], [-12.0, -15.0]), 5: ([-9.0, -9.0], [-13.0, -16.0])},
        ),
        try_next=_OWN_IDS,
        sources=("axolotl 3824",),
        since="0.1.0",
        function=same_ids,
    )
)
