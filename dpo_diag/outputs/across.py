"""The old answer under the new model, and the reverse, per look: did what was said become unlikely or second best."""

from __future__ import annotations

import os

import pandas as pd

from dpo_diag.outputs.looks import Answers, Look
from dpo_diag.outputs.stats import paired_change
from dpo_diag.records.answer_logps import read_answer_logps

COLUMNS = (
    "model", "step", "of", "n", "logp_before", "logp_after", "delta", "low", "high"
)  # fmt: skip


def across_table(folder: str | os.PathLike[str], answers: Answers, base: Look) -> pd.DataFrame:
    """Mean log-prob (nats per answer) of answers under the baseline and under each later look, paired over prompts.

    Returns:
        Two rows per look that was scored (`dpo-generate across=true`): of = "old" (the baseline's answers) and "new"
        (the look's own); logp_before under the baseline, logp_after under the look, delta with its 95 % interval, n
        prompts. No rows where nothing was scored against this baseline.
    """
    scored = read_answer_logps(folder)
    rows = []
    for look in answers.looks if len(scored) else ():
        if look == base:
            continue
        for of, writer, other in (("old", base, look), ("new", look, base)):
            mine = scored[
                (scored["model"] == other.model) & (scored["step"] == other.step)
                & (scored["of_model"] == writer.model) & (scored["of_step"] == writer.step)
            ]  # fmt: skip
            own = answers.of(writer)
            mine = mine[mine["sample"] == mine["prompt_id"].map(own["sample"])].set_index("prompt_id")["sum_logp"]
            home = own["sum_logp"].astype(float)
            common = home.dropna().index.intersection(mine.dropna().index)
            if common.empty:
                continue
            home, away = home.loc[common], mine.loc[common]
            before, after = (home, away) if of == "old" else (away, home)
            change = paired_change(before, after)
            rows.append(
                {"model": look.model, "step": look.step, "of": of, "n": change.n, "logp_before": float(before.mean()),
                 "logp_after": float(after.mean()), "delta": change.delta, "low": change.low, "high": change.high}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))
