"""DVG021: steps or epochs run backwards: two runs in one log, or a resume from an older checkpoint."""

from __future__ import annotations

import numpy as np

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import LISTED, Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.thresholds import Thresholds


def backtrack(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Asks the importer's report, then the epochs of history."""
    reported = ctx.info.source.backtracks
    if reported:
        return speaks("the source's steps run backwards: two runs, or a resume, in one log", backtracks=reported)
    table = ctx.run.arrow("history", ["step", "epoch", "split"]).to_pandas().astype({"split": str})
    known = table[table["epoch"].notna()].drop_duplicates(["step", "split"]).sort_values("step")
    if table.empty:
        raise Missing("no history")
    if known.empty:
        return silent("no source report of steps that run backwards; epochs are not recorded")
    change = known.groupby("split", observed=True)["epoch"].diff()
    # An epoch column is rounded to two digits by some trainers.
    back = known.assign(change=change)[change < -t["backtrack_min_epochs"]].sort_values(["split", "step"])
    if back.empty:
        return silent("steps and epochs only grow", rows=len(known))
    rows = [{"split": r.split, "step": int(r.step), "epoch_change": float(r.change)} for r in back.itertuples()]
    return speaks("the epoch runs backwards while the step grows: two runs in one log", backtracks=rows[:LISTED])


_LOSS = {"loss": np.linspace(0.69, 0.5, 10)}

register(
    Check(
        code="DVG021",
        title="steps that run backwards",
        says="The log's steps run backwards, or the epoch falls while the step grows.",
        why="Two runs, or a run and its resume, are drawn as one curve. Every change between first and last then "
        "compares different trainings.",
        needs="history with epochs, or the importer's report",
        severity="warning",
        evidence={
            "backtracks": "where: split, step and epoch_change; or the importer's split, from and to",
            "rows": "silent: rows with an epoch that were looked at",
        },
        false_alarms=("a resume from the very checkpoint that was logged last, written into the same file",),
        bad=Example(
            "The epoch goes from 0.5 back to 0.1 at step 30.",
            train=_LOSS,
            epochs=[0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.2, 0.3, 0.4, 0.5],
        ),
        good=Example(
            "Epochs rounded to two digits that only grow.",
            train=_LOSS,
            epochs=[0.01, 0.01, 0.02, 0.02, 0.03, 0.03, 0.04, 0.04, 0.05, 0.05],
        ),
        try_next=("split the log into its runs, or import only the last one",),
        sources=("what log linters look for",),
        since="0.1.0",
        function=backtrack,
        reads=("backtrack_min_epochs",),
    )
)
