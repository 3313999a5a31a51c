"""One step in a process of its own, for jobs that a launcher runs as several.

Inside a rank, SFT would spread over all ranks (another batch size, so another model), and the rank that holds the
cache's lock would wait for ranks that wait for the lock.
"""

from __future__ import annotations

import os
import subprocess
import sys

from dpo_diag.errors import DiagError

_LAUNCHER = ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "DEEPSPEED_", "PMI_", "OMPI_", "CCL_", "GROUP_", "ROLE_")
_LAUNCHER_NAMES = frozenset(
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK")
)


def is_one_of_many() -> bool:
    """Whether this process is a rank of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def single_process_environment(environment: dict[str, str]) -> dict[str, str]:
    """`environment` without what makes a process one rank of many."""
    return {k: v for k, v in environment.items() if k not in _LAUNCHER_NAMES and not k.startswith(_LAUNCHER)}


def run_apart(module: str, *arguments: str) -> None:
    """Call `main(arguments)` of a module in a child process outside the launcher's world.

    Raises:
        DiagError: the child failed; its own line is on standard error.
    """
    code = f"import sys; from {module} import main; sys.exit(main(sys.argv[1:]))"
    environment = single_process_environment(dict(os.environ))
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], env=environment, stdout=2, check=False)
    if done.returncode != 0:
        raise DiagError(
            "preparing the SQL case failed in its own process", got=f"exit status {done.returncode}",
            hint="see the lines above; or prepare it once without the launcher",
        )  # fmt: skip
