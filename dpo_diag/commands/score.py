"""`dpo-score`: measure finished checkpoints on preference pairs; the last line printed is the run folder alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dpo_diag.command_lines import say_next
from dpo_diag.commands.hydra_app import call_of, is_main_process, run_app, to_config
from dpo_diag.commands.run_place import RunPlace, say
from dpo_diag.config_checkpoints import ScoreConfig, check_score, checkpoint_names
from dpo_diag.errors import DiagError


def job(cfg: DictConfig) -> str:
    """One scoring; returns the run folder, or its URL."""
    from hydra.core.hydra_config import HydraConfig

    config = to_config(cfg, ScoreConfig)
    check_score(config)
    place = RunPlace.of(config, Path(HydraConfig.get().runtime.output_dir))
    from dpo_diag.commands.after_run import explain_and_report
    from dpo_diag.data.source import load_data
    from dpo_diag.models.checkpoints import Loader

    # Without a share that is held out nothing is split, and a set of one prompt is scored like any other.
    data = config.data if config.hold_out or config.data.eval_path else replace(config.data, eval_share=0.0)
    source = load_data(data, seed=config.seed, thresholds=config.checks)
    if is_main_process():
        for line in [*source.readings(), *(f"note: {note}" for note in source.notes())]:
            say(line)
    source.check(config.data.max_bad_share)
    rows = source.held_out if config.hold_out else source.train + source.held_out
    set_: dict[str, Any] = {
        "call": call_of(), "reference": config.reference, "split": config.split,
        "split_role": "held_out" if config.hold_out else None,
        "facts": {
            "loss": config.loss, "reference_free": not config.loss.needs_reference, "data": source.summary(),
            "name": config.name,
        },
    }  # fmt: skip
    settings: dict[str, Any] = {
        "max_length": config.max_length, "truncation_mode": config.truncation_mode, "batch_size": config.batch_size,
        "shared_prefix": config.shared_prefix, "row_tokens": config.row_tokens, "tokens": config.tokens,
        "no_prompt": config.no_prompt, "ches": config.ches, "kl": config.kl,
    }  # fmt: skip
    names, pairs = checkpoint_names(config), rows[: config.data.max_eval_pairs]
    loader = Loader(**vars(config.loader))
    if place.launch is None:
        from dpo_diag.inference.score_run import score_checkpoints

        score_checkpoints(
            names, pairs, place.folder, loader=loader, say=say, reference_store=config.reference_store, **set_,
            **settings,
        )  # fmt: skip
    else:
        if config.reference_store is not None:
            raise DiagError(
                "a reference store is written by one process", where="reference_store", got="several", usage=True,
                hint="fill it in one process first, or leave it out",
            )  # fmt: skip
        if config.kl:
            raise DiagError(
                "the KL is taken by one process, which holds policy and reference", where="kl", got="several",
                hint="score with kl=true in one process", usage=True,
            )  # fmt: skip
        from dpo_diag.inference.launch import run_shared
        from dpo_diag.inference.shared_work import ScoreJob

        work = ScoreJob.of(names, pairs, settings=settings, loading=vars(config.loader), say=say, **set_)
        if not run_shared(work, place.out, place.folder, loader, place.launch, say=say):
            return place.out
    source.write_report(place.folder)
    following = explain_and_report(
        place.folder, explain=config.explain, report=config.report, thresholds=config.checks
    )  # fmt: skip
    out = place.finish()
    # Of a run that goes to a bucket the folder here is a passing one.
    say_next([line.replace(str(place.folder), out) for line in following], sys.stderr)
    print(out, flush=True)
    return place.out


def main() -> int:
    """Entry point of dpo-score."""
    return run_app("dpo-score", "score", job)


if __name__ == "__main__":
    sys.exit(main())
