"""LLaMA-Factory's trainer_log.jsonl.

v0: current_steps, total_steps, loss, accuracy, lr, epoch, percentage, elapsed_time, remaining_time: no margins, no
log-probs (they are in trainer_state.json beside it). v1: all metrics plus step and total_steps.
"""

from __future__ import annotations

from pathlib import Path

from dpo_diag.importers.jsonl_log import read_lines
from dpo_diag.importers.parsed import Options, Parsed


def read_llamafactory(path: Path, options: Options) -> Parsed:
    """Read trainer_log.jsonl; the schema version is told by its step column."""
    parsed = read_lines(path, options, "llamafactory", "llama-factory")
    if parsed.store is not None:
        steps = {b.step_key for b in parsed.store.taken()}
        parsed.version = options.trainer_version or ("v0" if "current_steps" in steps else "v1")
        if parsed.version == "v0":
            parsed.notes.append(
                "LLaMA-Factory v0 logs loss and accuracy only; trainer_state.json beside it holds the rest"
            )
    return parsed
