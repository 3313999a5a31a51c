"""Building the case in one process of its own, for jobs that a launcher runs as several.

Inside a rank, SFT would spread over all ranks (another batch size, so another model), and the rank that holds the
cache's lock would wait for ranks that wait for the lock.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict

from dpo_diag.errors import DiagError
from dpo_diag.tasks.sql.pipeline import SqlCaseConfig, prepare_sql_case

_LAUNCHER = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "DEEPSPEED_", "PMI_", "OMPI_", "CCL_", "GROUP_", "ROLE_")
_LAUNCHER_NAMES = frozenset(
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK")
)


def single_process_environment(environment: dict[str, str]) -> dict[str, str]:
    """`environment` without what makes a process one rank of many."""
    return {k: v for k, v in environment.items() if k not in _LAUNCHER_NAMES and not k.startswith(_LAUNCHER)}


def build_in_one_process(
    cache_root: str | os.PathLike[str], config: SqlCaseConfig, trainer_class: type | None = None
) -> None:
    """Fill the cache from a child process outside the launcher's world; every rank may call it, one child builds.

    Raises:
        DiagError: the child failed; its own line is on standard error.
    """
    trainer = f"{trainer_class.__module__}:{trainer_class.__qualname__}" if trainer_class else ""
    command = [sys.executable, "-m", "dpo_diag.tasks.sql.build", os.fspath(cache_root), json.dumps(asdict(config))]
    done = subprocess.run([*command, trainer], env=single_process_environment(dict(os.environ)), stdout=2, check=False)
    if done.returncode != 0:
        raise DiagError(
            "preparing the SQL case failed in its own process",
            got=f"exit status {done.returncode}",
            hint="see the lines above; or prepare it once without the launcher",
        )


def main(argv: list[str]) -> int:
    """cache_root, the configuration as JSON, and "module:class" of the trainer or ""."""
    root, settings, trainer = argv
    trainer_class = None
    if trainer:
        module, _, name = trainer.partition(":")
        trainer_class = getattr(importlib.import_module(module), name)
    try:
        prepare_sql_case(root, SqlCaseConfig(**json.loads(settings)), trainer_class=trainer_class)
    except DiagError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
