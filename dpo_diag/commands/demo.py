"""`dpo-diag demo`: the embedded text-to-SQL case, from nothing to an explained run; what `make demo` runs."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

WAYS_OUT = ("sql_dpo_sft_term", "sql_dpo_high_beta")


def demo(*overrides: str, all: Annotated[bool, Parameter(name="--all")] = False) -> int:
    """The embedded text-to-SQL case: train, explain, report; the last line is the run folder.

    Args:
        overrides: as dpo-train takes them, e.g. seed=1.
        all: the two known ways out too: an SFT term, a high beta.
    """
    from dpo_diag.commands.hydra_app import run_app
    from dpo_diag.commands.train import job

    print("Text-to-SQL in three stages: SFT from scratch, 620 pairs that the SFT model got wrong, DPO on them.")
    if not all:
        print("The two known ways out: dpo-diag demo --all, or experiment=sql_dpo_sft_term and sql_dpo_high_beta.")
    status = 0
    for experiment in ("sql_dpo", *(WAYS_OUT if all else ())):
        print(f"\n=== dpo-train experiment={experiment} {' '.join(overrides)}", flush=True)
        status = run_app("dpo-train", "config", job, [f"experiment={experiment}", *overrides]) or status
    return status
