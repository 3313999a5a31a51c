"""`dpo-score`: measure finished checkpoints on preference pairs; the last line printed is the run folder alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig

from dpo_diag.commands.hydra_app import run_app, to_config
from dpo_diag.config_checkpoints import ScoreConfig, check_score, checkpoint_names

if TYPE_CHECKING:
    from dpo_diag.models.packed.verify import SharedPrefix


def job(cfg: DictConfig) -> str:
    """One scoring; returns the run folder."""
    from hydra.core.hydra_config import HydraConfig

    config = to_config(cfg, ScoreConfig)
    check_score(config)
    out = Path(config.out or HydraConfig.get().runtime.output_dir)
    from dpo_diag.commands.after_run import explain_and_report
    from dpo_diag.data.source import load_data
    from dpo_diag.inference.score_run import score_checkpoints
    from dpo_diag.models.checkpoints import Loader

    # Without a share that is held out nothing is split, and a set of one prompt is scored like any other.
    data = config.data if config.hold_out or config.data.eval_path else replace(config.data, eval_share=0.0)
    source = load_data(data, seed=config.seed, thresholds=config.checks)
    for line in [*source.readings(), *(f"note: {note}" for note in source.notes())]:
        print(line, file=sys.stderr)
    source.check(config.data.max_bad_share)
    rows = source.held_out if config.hold_out else source.train + source.held_out
    rows = rows[: config.data.max_eval_pairs]
    folder = score_checkpoints(
        checkpoint_names(config), rows, out, reference=config.reference, split=config.split,
        split_role="held_out" if config.hold_out else None,
        max_length=config.max_length, truncation_mode=config.truncation_mode,
        loader=Loader(**vars(config.loader)), batch_size=config.batch_size,
        shared_prefix=cast("SharedPrefix", config.shared_prefix), row_tokens=config.row_tokens, tokens=config.tokens,
        no_prompt=config.no_prompt, ches=config.ches,
        facts={
            "loss": config.loss, "reference_free": False, "data": source.summary(), "name": config.name,
        },
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    source.write_report(folder)
    explain_and_report(folder, explain=config.explain, report=config.report, thresholds=config.checks)
    print(folder, flush=True)
    return str(folder)


def main() -> int:
    """Entry point of dpo-score."""
    return run_app("dpo-score", "score", job)


if __name__ == "__main__":
    sys.exit(main())
