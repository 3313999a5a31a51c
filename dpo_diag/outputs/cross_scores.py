"""The old answer under the new model, and the reverse: did what was written before become unlikely, or second best."""

from __future__ import annotations

import os

import pandas as pd

from dpo_diag.outputs.answers import Answers, Checkpoint, columns_of
from dpo_diag.paired import paired_change
from dpo_diag.records.schemas import ANSWER_LOGPS
from dpo_diag.records.side_tables import read_side_table
from dpo_diag.stats import LEVEL

COLUMNS = ["model", "step", "of", "n", "logp_before", "logp_after", "delta", "low", "high"]


def cross_score_table(
    folder: str | os.PathLike[str], answers: Answers, base: Checkpoint, level: float = LEVEL
) -> pd.DataFrame:
    """Mean log-prob (nats per answer) of answers under the baseline and a later checkpoint, paired over prompts.

    Returns:
        Two rows per checkpoint that was scored (`dpo-generate across=true`): of = "old" (the baseline's answers) and
        "new" (the checkpoint's own); logp_before under the baseline, logp_after under the checkpoint, delta with its
        interval, n prompts. No rows where nothing was scored against this baseline.
    """
    scored = read_side_table(folder, ANSWER_LOGPS)
    rows = []
    for checkpoint in answers.checkpoints if len(scored) else ():
        if checkpoint == base:
            continue
        for of, writer, scorer in (("old", base, checkpoint), ("new", checkpoint, base)):
            theirs = scored[
                (scored["model"] == scorer.model) & (scored["step"] == scorer.step)
                & (scored["of_model"] == writer.model) & (scored["of_step"] == writer.step)
            ]  # fmt: skip
            own = answers.of(writer)
            theirs = theirs[theirs["sample"] == theirs["prompt_id"].map(own["sample"])]
            by_scorer = theirs.set_index("prompt_id")["sum_logp"].dropna()
            by_writer = own["sum_logp"].astype(float).dropna()
            common = by_writer.index.intersection(by_scorer.index)
            if common.empty:
                continue
            before, after = (by_writer, by_scorer) if of == "old" else (by_scorer, by_writer)
            before, after = before.loc[common], after.loc[common]
            sources = answers.sources.reindex(common).to_numpy(dtype=object)
            change = columns_of(paired_change(before, after, level, clusters=sources).delta)
            means = {"logp_before": float(before.mean()), "logp_after": float(after.mean())}
            rows.append({**checkpoint._asdict(), "of": of, **means, "delta": change.pop("value"), **change})
    return pd.DataFrame(rows, columns=COLUMNS)
