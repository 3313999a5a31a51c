"""`dpo-generate`: answers of finished checkpoints to fixed prompts; the last line printed is the run folder alone."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from dpo_diag.command_lines import say_next
from dpo_diag.commands.hydra_app import call_of, run_app, to_config
from dpo_diag.commands.run_place import RunPlace, say
from dpo_diag.config_checkpoints import GenerateConfig, check_generate, checkpoint_names
from dpo_diag.next_steps import after_explain


def job(cfg: DictConfig) -> str:
    """One generation; returns the run folder, or its URL."""
    from hydra.core.hydra_config import HydraConfig

    config = to_config(cfg, GenerateConfig)
    check_generate(config)
    place = RunPlace.of(config, Path(HydraConfig.get().runtime.output_dir))
    from dpo_diag.inference.generation import decoding_from
    from dpo_diag.inference.prompts import load_prompts
    from dpo_diag.models.checkpoints import Loader

    names, prompts = checkpoint_names(config), load_prompts(str(config.prompts.path))
    decoding, loader = decoding_from(config.prompts), Loader(**vars(config.loader))
    if place.launch is None:
        from dpo_diag.inference.generate_run import generate_checkpoints

        generate_checkpoints(
            names, prompts, place.folder, decoding=decoding, loader=loader, batch_size=config.batch_size,
            call=call_of(), say=say,
        )  # fmt: skip
    else:
        from dpo_diag.inference.launch import run_shared
        from dpo_diag.inference.shared_work import GenerateJob

        work = GenerateJob.of(
            names, prompts, decoding, batch_size=config.batch_size, loading=vars(config.loader), call=call_of()
        )
        if not run_shared(work, place.out, place.folder, loader, place.launch, say=say):
            return place.out
    if config.across:
        from dpo_diag.inference.swapped_answers import score_swapped

        score_swapped(names, place.folder, loader=loader, batch_size=config.batch_size, say=say)
    from dpo_diag.commands.after_run import print_comparison, print_explanation
    from dpo_diag.records import load_run

    run = load_run(place.folder)
    if run.has("pairs") or run.has("history"):
        print_explanation(run)
    else:
        print_comparison(run)  # there is nothing but answers to explain
    following = after_explain(place.folder, {})
    out = place.finish()
    # Of a run that goes to a bucket the folder here is a passing one.
    say_next([line.replace(str(place.folder), out) for line in following], sys.stderr)
    print(out, flush=True)
    return place.out


def main() -> int:
    """Entry point of dpo-generate."""
    return run_app("dpo-generate", "generate", job)


if __name__ == "__main__":
    sys.exit(main())
