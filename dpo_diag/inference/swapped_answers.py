"""The old answer under the new model, and the reverse: a run's answers, scored by checkpoints that did not write them.

It shows whether the answer that a model used to give became unlikely, or only second best.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.models.checkpoints import Checkpoint, Loader, find_checkpoints
from dpo_diag.records import Run
from dpo_diag.records.schemas import ANSWER_LOGPS
from dpo_diag.records.side_tables import read_side_table, write_side_table


def score_swapped(
    checkpoints: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    loader: Loader | None = None,
    batch_size: int = 16,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write `answer_logps.parquet` of the run `out`: the first answers (lowest sample) of the old model (the SFT model,
    else the reference, else the earliest step) under each checkpoint, and each checkpoint's own under the old one.

    What is written already is not scored again.

    Raises:
        DiagError: fewer than two checkpoints with answers, or checkpoints of different tokenizers.
    """
    from dpo_diag.inference.scoring import answer_logp

    loader = loader or Loader()
    run = Run(out, whole=True)
    frame = run.outputs
    frame = frame[frame["sample"] == frame.groupby("prompt_id", observed=True)["sample"].transform("min")]
    places = pd.MultiIndex.from_frame(frame[["model", "step"]])
    writers = [c for c in find_checkpoints(checkpoints) if (c.model, c.step) in places]
    if len(writers) < 2:
        raise DiagError(
            "no two checkpoints with answers", where=run.path, got=len(writers), hint="name more checkpoints"
        )
    rank = {"sft": 0, "ref": 1}
    old = min(writers, key=lambda c: (rank.get(c.model, 2), c.step))
    others = [c for c in writers if c != old]
    _same_tokenizer(writers, loader)
    known = read_side_table(run.path, ANSWER_LOGPS)
    done = set(known[list(ANSWER_LOGPS.key)].itertuples(index=False, name=None))
    for scorer, scored in [*((c, [old]) for c in others), (old, others)]:
        own = {(c.model, c.step) for c in scored}
        rows = frame[[place in own for place in places]]
        new = [
            (scorer.model, scorer.step, *row) not in done
            for row in rows[["model", "step", "prompt_id", "sample"]].itertuples(index=False, name=None)
        ]
        rows = rows[new]
        if rows.empty:
            continue
        say(f"{len(rows)} answers under {scorer.model} at step {scorer.step}")
        with loader.open(scorer) as (model, tokenizer):
            logps = answer_logp(model, tokenizer, rows, batch_size=batch_size, progress=progress)
        write_side_table(
            run.path,
            ANSWER_LOGPS,
            pd.DataFrame(
                {
                    "model": scorer.model, "step": scorer.step, "of_model": rows["model"].astype(str),
                    "of_step": rows["step"].astype(int), "prompt_id": rows["prompt_id"].astype(str),
                    "sample": rows["sample"].astype(int), "sum_logp": logps,
                }
            ),
        )  # fmt: skip
    return run.path


def _same_tokenizer(checkpoints: list[Checkpoint], loader: Loader) -> None:
    from dpo_diag.models.tokenizers import tokenizer_fingerprint

    different = {tokenizer_fingerprint(loader.tokenizer_of(c)) for c in checkpoints}
    if len(different) > 1:
        raise DiagError(
            "the checkpoints have different tokenizers", where="across", got=f"{len(different)} of them",
            hint="loader.tokenizer=PATH, if one fits all",
        )  # fmt: skip
