"""The old answer under the new model, and the reverse: answers of a run scored by the checkpoints that did not write
them. It tells whether what the model used to say became unlikely, or only second best."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.models.checkpoints import Checkpoint, Loader, find_checkpoints
from dpo_diag.records import Run
from dpo_diag.records.answer_logps import KEY, add_answer_logps, read_answer_logps


def score_across(
    checkpoints: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    loader: Loader | None = None,
    batch_size: int = 16,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write `answer_logps.parquet` of the run `out`: the first answers (lowest sample) of the old look (the SFT model,
    else the reference, else the earliest step) under each checkpoint, and each checkpoint's own under the old one.

    What is written already is not scored again.

    Raises:
        DiagError: fewer than two checkpoints with answers, or checkpoints of different tokenizers.
    """
    from dpo_diag.inference.scoring import answer_logp
    from dpo_diag.models.tokenizers import tokenizer_fingerprint

    loader = loader or Loader()
    run = Run(out)
    frame = run.outputs
    frame = frame[frame["sample"] == frame.groupby("prompt_id", observed=True)["sample"].transform("min")]
    answers = {(str(m), int(s)): own for (m, s), own in frame.groupby(["model", "step"], observed=True)}
    found = [c for c in find_checkpoints(list(checkpoints)) if (c.model, c.step) in answers]
    if len(found) < 2:
        raise DiagError("no two checkpoints with answers", where=run.path, got=len(found), hint="name more checkpoints")
    rank = {"sft": 0, "ref": 1}
    old = min(found, key=lambda c: (rank.get(c.model, 2), c.step))
    others = [c for c in found if (c.model, c.step) != (old.model, old.step)]
    prints = {tokenizer_fingerprint(loader.tokenizer_of(c)) for c in found}
    if len(prints) > 1:
        raise DiagError("the checkpoints have different tokenizers", where="across", got=f"{len(prints)} of them",
                        hint="loader.tokenizer=PATH, if one fits all")  # fmt: skip
    done = set(read_answer_logps(run.path)[KEY].itertuples(index=False, name=None))
    work: list[tuple[Checkpoint, list[Checkpoint]]] = [*((c, [old]) for c in others), (old, others)]
    for scorer, writers in work:
        parts = []
        for writer in writers:
            own = answers[writer.model, writer.step]
            key = (scorer.model, scorer.step, writer.model, writer.step)
            parts.append(own[[(*key, p, s) not in done for p, s in zip(own["prompt_id"], own["sample"], strict=True)]])
        rows = pd.concat(parts, ignore_index=True)
        if rows.empty:
            continue
        say(f"{len(rows)} answers under {scorer.model} at step {scorer.step}")
        with loader.open(scorer) as (model, tokenizer):
            logps = answer_logp(model, tokenizer, rows, batch_size=batch_size, progress=progress)
        told = pd.DataFrame(
            {
                "model": scorer.model, "step": scorer.step, "of_model": rows["model"].astype(str),
                "of_step": rows["step"].astype(int), "prompt_id": rows["prompt_id"].astype(str),
                "sample": rows["sample"].astype(int), "sum_logp": logps.astype(float),
            }
        )  # fmt: skip
        add_answer_logps(run.path, told)
    return run.path
