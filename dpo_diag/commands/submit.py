"""`dpo-diag submit`: a multirun as a Slurm job array; nothing waits for it on the login node."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.commands import slurm
from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.next_steps import after_submit
from dpo_diag.records.jobs import Plan, this_process, write_plan
from dpo_diag.records.names import check_name
from dpo_diag.records.run_lock import claimed
from dpo_diag.records.secrets import redacted_words
from dpo_diag.text import plural

APPS = {"dpo-train": "config", "dpo-score": "score", "dpo-generate": "generate"}


def submit(
    command: Annotated[list[str], Parameter(consume_multiple=True, allow_leading_hyphen=True)],
    /,
    *,
    sbatch: list[str] | None = None,
    concurrent: int | None = None,
    dry_run: bool = False,
) -> int:
    """Send a multirun to Slurm as a job array; the login node is free at once.

    Every task is one job of the sweep; one that is requeued goes on from its last checkpoint.

    Args:
        command: overrides of a multirun as dpo-train -m takes them; a first word dpo-score or dpo-generate names that.
        sbatch: an option of sbatch, NAME=VALUE, e.g. time=02:00:00; may be given several times.
        concurrent: tasks that run at a time (default: as many as Slurm lets).
        dry_run: write the sweep's folder and script, and send nothing.
    """
    require("hydra", "submitting a multirun")
    words = [word for word in command if word not in ("-m", "--multirun")]
    app = words.pop(0) if words and words[0] in APPS else "dpo-train"
    options = _options(sbatch or [])
    given = [*words, *options]
    if lacking := [a.partition("=")[0] for a, b in zip(given, redacted_words(given), strict=True) if a != b]:
        raise DiagError("a secret is not written into a sweep's folder", where="submit", got=", ".join(lacking),
                        hint="give it to the tasks by its environment variable", usage=True)  # fmt: skip
    if concurrent is not None and concurrent < 1:
        raise DiagError("out of range", where="--concurrent", got=concurrent, expected="at least 1", usage=True)
    folder, jobs, hydra = _planned(app, words)
    # Who runs the jobs is elsewhere and later: until each has begun its turn is still to come.
    state = replace(this_process(), host=slurm.HOST, pid=0, process_began=None)
    plan = Plan(app, tuple(words), os.getcwd(), jobs, hydra, None, state)
    write_plan(folder, plan)
    from dpo_diag.commands.resume_trust import SCRIPT, sign_sweep

    script = folder / SCRIPT
    script.write_text(_script(folder, len(jobs), options, concurrent), encoding="utf-8")
    sign_sweep(folder)
    print(f"{plural(len(jobs), 'job')}: {script}", file=sys.stderr)
    if not dry_run:
        number = slurm.send(script)
        write_plan(folder, replace(plan, state=replace(state, pid=number)))
        print(f"Slurm job {number}", file=sys.stderr)
    say_next(after_submit(folder, script if dry_run else None), sys.stderr)
    print(folder)
    return 0


def _options(given: Sequence[str]) -> list[str]:
    for text in given:
        if "\n" in text or not text.partition("=")[0].replace("-", "").isalnum():
            raise DiagError("no option of sbatch", where="--sbatch", got=repr(text), expected="NAME=VALUE", usage=True)
    return [f"--{text.lstrip('-')}" for text in given]


def _planned(app: str, words: Sequence[str]) -> tuple[Path, tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """The sweep's folder, each job's overrides, every one of them composed and checked, and Hydra's own of a job."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from dpo_diag.commands.hydra_app import SCHEMAS, register, to_config
    from dpo_diag.commands.hydra_callback import of_a_job
    from dpo_diag.commands.overrides import explain_override
    from dpo_diag.config import Config, conf_dir
    from dpo_diag.config_checks import check

    if any(word.startswith(("hydra/sweeper=", "hydra/launcher=")) for word in words):
        raise DiagError(
            "a sweeper that draws its jobs, or a launcher, needs a process that waits for them", where="submit",
            hint="sbatch --wrap 'dpo-train -m ...' runs that process on a node", usage=True,
        )  # fmt: skip
    reason = explain_override(words, SCHEMAS[APPS[app]])
    if reason is not None:
        raise DiagError(reason, usage=True)
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name=app):
            ours = [word for word in words if word.lstrip("+~").startswith(("hydra.", "hydra/"))]
            task = [word for word in words if word not in ours]
            base = compose(APPS[app], ours + _plain(task), return_hydra_config=True)
            swept = base.hydra.sweeper.get("params") or {}
            given = [*(f"{key}={value}" for key, value in swept.items()), *task]
            parsed = OverridesParser.create().parse_overrides(given)
            jobs = tuple(tuple(job) for job in BasicSweeper.split_arguments(parsed, None)[0])
            for job in jobs:
                config = compose(APPS[app], list(job))
                if app == "dpo-train":
                    check(to_config(config, Config))
            check_name(str(base.name), "name", "output_root=FOLDER says where the runs lie")
            return claimed(Path(str(base.hydra.sweep.dir)).absolute()), jobs, of_a_job(ours)
    except (HydraException, OmegaConfBaseException) as error:
        raise DiagError(" ".join(f"{error} {error.__cause__ or ''}".split()), usage=True) from error


def _plain(words: Sequence[str]) -> list[str]:
    """Overrides that are the same in all jobs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    return [word for word in words if not parser.parse_override(word).is_sweep_override()]


def _script(folder: Path, n: int, options: Sequence[str], concurrent: int | None) -> str:
    array = f"0-{n - 1}" + (f"%{concurrent}" if concurrent else "")
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={folder.parent.name}",
        f"#SBATCH --array={array}",
        f"#SBATCH --output={shlex.quote(str(folder).replace('%', '%%') + '/slurm-%a.out')}",
        "#SBATCH --requeue",
        *(f"#SBATCH {option}" for option in options),
        shlex.join(["cd", os.getcwd()]),
        f'exec {shlex.join([sys.executable, "-P", "-m", "dpo_diag.commands.diag", "sweep", str(folder)])}'
        ' --resume --trust --job "$SLURM_ARRAY_TASK_ID"',  # a node may have another home, so no key
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
