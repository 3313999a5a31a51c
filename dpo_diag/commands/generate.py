"""`dpo-generate`: answers of finished checkpoints to fixed prompts; the last line printed is the run folder alone."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from dpo_diag.commands.hydra_app import run_app, to_config
from dpo_diag.config_checkpoints import GenerateConfig, check_generate, checkpoint_names


def job(cfg: DictConfig) -> str:
    """One generation; returns the run folder."""
    from hydra.core.hydra_config import HydraConfig

    config = to_config(cfg, GenerateConfig)
    check_generate(config)
    out = Path(config.out or HydraConfig.get().runtime.output_dir)
    from dpo_diag.inference.generate_run import generate_checkpoints
    from dpo_diag.inference.generation import decoding_from
    from dpo_diag.inference.prompts import load_prompts
    from dpo_diag.models.checkpoints import Loader

    p, loader = config.prompts, Loader(**vars(config.loader))

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = generate_checkpoints(
        checkpoint_names(config), load_prompts(str(p.path)), out,
        decoding=decoding_from(p),
        loader=loader, batch_size=config.batch_size, say=say,
    )  # fmt: skip
    if config.across:
        from dpo_diag.inference.swapped_answers import score_swapped

        score_swapped(checkpoint_names(config), out, loader=loader, batch_size=config.batch_size, say=say)
    print(folder, flush=True)
    return str(folder)


def main() -> int:
    """Entry point of dpo-generate."""
    return run_app("dpo-generate", "generate", job)


if __name__ == "__main__":
    sys.exit(main())
