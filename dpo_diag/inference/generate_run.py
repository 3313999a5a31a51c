"""Answers of many checkpoints to fixed prompts, one checkpoint after the other, into a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.errors import DiagError
from dpo_diag.inference.prompts import Prompt, prompts_hash, to_prompts
from dpo_diag.inference.run_folders import Checkpoints, added_to, as_checkpoints
from dpo_diag.models.checkpoints import Loader
from dpo_diag.records import Run
from dpo_diag.records.run_info import CallInfo

if TYPE_CHECKING:
    from dpo_diag.models.decoding import Decoding


def generate_checkpoints(
    checkpoints: Checkpoints,
    prompts: Iterable[Prompt | Mapping[str, Any]],
    out: str | os.PathLike[str],
    *,
    decoding: Decoding | None = None,
    loader: Loader | None = None,
    batch_size: int = 32,
    chunk: int = 64,
    call: CallInfo | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Answers of checkpoints to fixed prompts, written to the run folder `out` as rows of outputs/.

    Answers that are there are not written again (per checkpoint and prompt); what is written stays if the work is
    interrupted, and the same call goes on from there. `out` may be a training's run: its answers gain columns.

    Args:
        checkpoints: as for `find_checkpoints`.
        prompts: Prompts or their rows.
        out: run folder, made if absent.
        decoding: None for greedy answers of up to 256 tokens.
        loader: device, dtype, tokenizer; None for the defaults.
        batch_size: answers written at once by the model.
        chunk: prompts per file: what a killed run loses at most.
        call: the command that asked for it, which the run keeps until it is finished.
        progress: show a bar per checkpoint.
        say: called with one line per checkpoint.

    Raises:
        DiagError: answers in `out` were written under other decoding settings or for other prompts of the same ids.
    """
    from dpo_diag.inference.generation import begin_note, generate
    from dpo_diag.models.decoding import Decoding

    decoding, loader = decoding or Decoding(), loader or Loader()
    asked = to_prompts(prompts)
    if not asked:
        raise DiagError("no prompts", expected="at least one")
    writers = as_checkpoints(checkpoints)
    with added_to(out, call) as (run_writer, before):
        if before.kind == "scored":
            run_writer.update(checkpoints_asked=len(writers))
        done = answered(Run(run_writer.path, whole=True), decoding)
        for n, checkpoint in enumerate(writers, 1):
            missing = [p for p in asked if (checkpoint.model, checkpoint.step, p.id) not in done]
            name = f"{n}/{len(writers)} {checkpoint.model} at step {checkpoint.step}"
            if not missing:
                say(f"{name}: all {len(asked)} answers are there")
                continue
            say(f"{name}: {len(missing)} prompts, {checkpoint.path}")
            with loader.open(checkpoint) as (model, tokenizer):
                if note := begin_note(tokenizer, missing):
                    say(f"    {note}")
                for start in range(0, len(missing), chunk):
                    part = missing[start : start + chunk]
                    frame = generate(
                        model, tokenizer, part, decoding, step=checkpoint.step, model_name=checkpoint.model,
                        batch_size=batch_size, progress=progress,
                    )  # fmt: skip
                    # A name of its own per part: a file is replaced by one of the same step and name.
                    run_writer.write("outputs", frame, split=f"{checkpoint.model}-{prompts_hash(part)}")
        run_writer.update(decoding=decoding.to_dict(), prompts={"n": len(asked), "hash": prompts_hash(asked)})
    return run_writer.path


def answered(run: Run, decoding: Decoding) -> set[tuple[str, int, str]]:
    """(model, step, prompt id) of prompts whose answers are complete; refuses answers under other settings."""
    columns = ["model", "step", "prompt_id", "sample", "decoding_hash", "seed"]
    frame = run.read("outputs", columns)
    if frame.empty:
        return set()
    for sampled, own in frame.groupby(frame["seed"].notna(), observed=True):
        wanted = decoding.row_hash(bool(sampled))
        other = own.loc[own["decoding_hash"] != wanted, "decoding_hash"]
        asked = decoding.n_samples > 0 if sampled else decoding.greedy
        if asked and len(other):
            raise DiagError(
                "the run holds answers under other decoding settings", where=run.path, got=other.iloc[0],
                expected=wanted, hint="use the settings in its run.json (decoding), or another out folder",
            )  # fmt: skip
    needed = set(range(decoding.answers_per_prompt))
    per_prompt = frame.groupby(["model", "step", "prompt_id"], observed=True)["sample"].agg(set)
    complete = per_prompt[per_prompt.map(needed.issubset)].index.to_frame(index=False)
    return {(str(m), int(s), str(p)) for m, s, p in complete.itertuples(index=False, name=None)}
