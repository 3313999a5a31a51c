"""What the Hydra apps share: where conf/ is, the schema, errors in one line, resuming, several processes.

Heavy imports (torch, trl) stay inside the jobs, so that `--help`, `--cfg job` and shell completion are fast.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpo_diag.command_lines import line, override, say_next
from dpo_diag.commands.diag import tell_damage
from dpo_diag.commands.hydra_callback import BEGUN, HELD, Refused, close_logs, job_folder
from dpo_diag.commands.overrides import (
    could_not_override,
    explain_override,
    not_an_override,
    quoted_paths,
    refuse_two_modes,
)
from dpo_diag.commands.resume_trust import replays, resumed, sign
from dpo_diag.config import Config, conf_dir
from dpo_diag.config_checkpoints import GenerateConfig, ScoreConfig
from dpo_diag.errors import DiagError
from dpo_diag.extras import has_plugin, refuse_together, require_plugin
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.jobs import SWEEP_FILE, begin_job, end_job, end_plan, guard_configuration
from dpo_diag.records.run_info import CallInfo, ended_by
from dpo_diag.records.run_lock import OWN, writing
from dpo_diag.records.scratch import scratch_folder
from dpo_diag.records.secrets import redacted, redacted_words
from dpo_diag.safe_streams import safe_streams
from dpo_diag.shortages import LostProcess, memory_kept, shortage
from dpo_diag.stopping import exit_status, sigterm_interrupts, word

T = TypeVar("T")
Job = Callable[[DictConfig], Any]
SCHEMAS: dict[str, type] = {"config": Config, "score": ScoreConfig, "generate": GenerateConfig}
"""conf/NAME.yaml -> its schema, known to Hydra as base_NAME."""
log = logging.getLogger(__name__)


def register() -> None:
    """Make the schemas known to Hydra under the names that the root files begin with."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"base_{name}", node=schema)
    OmegaConf.register_new_resolver("objective_directions", _directions, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    if has_plugin("hydra_optuna_sweeper"):
        from dpo_diag.commands import optuna_sweeper

        optuna_sweeper.register()


def _directions(names: Any, given: Any, prompts: str, task: str) -> Any:
    """What a sweeper is to do with each objective, see `optuna_sweeper`."""
    from dpo_diag.diagnosis.objective import directions

    return directions(names, given, prompts, task)


def to_config(cfg: DictConfig, schema: type[T] = Config) -> T:  # type: ignore[assignment]
    """The composed configuration as dataclasses, interpolations resolved."""
    document = OmegaConf.to_container(cfg, resolve=True)
    merged = OmegaConf.merge(OmegaConf.structured(schema), document)
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def call_of() -> CallInfo:
    """The command of the job that runs, as it was called; of a multirun's job its own overrides."""
    hydra_cfg = HydraConfig.get()
    words = hydra_cfg.overrides.task if hydra_cfg.mode == RunMode.MULTIRUN else sys.argv[1:]
    return CallInfo((sys.argv[0], *redacted_words([str(word) for word in words])), str(hydra_cfg.runtime.cwd))


def is_main_process() -> bool:
    """Whether this is rank 0 of a launch, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def speaks_for_all() -> bool:
    """Whether this process tells what ended all that a launcher started here: the machine's first one, and each of the
    others where that one is gone."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return True
    import psutil

    for process in psutil.Process(os.getppid()).children():
        with suppress(psutil.Error):  # one that has ended has no environment
            if process.environ().get("LOCAL_RANK") == "0":
                return False
    return True


def run_app(name: str, config_name: str, job: Job, argv: list[str] | None = None) -> int:
    """Run a Hydra app; returns the exit status: 0 success, 1 failure, 2 usage, 130 and 143 stopped.

    Errors are one line unless `--debug` or HYDRA_FULL_ERROR is set.
    """
    with safe_streams():
        return _run_app(name, config_name, job, argv)


def _run_app(name: str, config_name: str, job: Job, argv: list[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Two OpenMP threads that spin while they wait are slower than one on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A job's log on a full disk: logging would print a traceback for each line that it cannot write.
    logging.raiseExceptions = debug
    # TRL 1.16 calls names that transformers 5.23 deprecates, at every step.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    try:
        with memory_kept(), sigterm_interrupts(), _full_errors(), _released(), warnings.catch_warnings():
            tell_damage(name)
            return _run(name, config_name, job, [a for a in arguments if a != "--debug"])
    except DiagError as error:
        if debug:
            raise
        print(f"{name}: {redacted(str(error))}", file=sys.stderr)
        say_next(getattr(error, "__notes__", []), sys.stderr)
        return 2 if error.usage else 1
    except (HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        if (origin := _origin(error)) is not None:
            print(f"{name}: {redacted(str(origin))}", file=sys.stderr)
            return 2
        # What Hydra says of a wrong type stands in the cause; the classes that OmegaConf adds tell a user nothing.
        reasons = [str(e) for e in (error, error.__cause__) if e is not None]
        said = re.sub(r"\n *(?:reference|object)_type=[^\n]*", "", "; ".join(reasons))
        if isinstance(error, OverrideParseException):
            said = not_an_override(error.override)
        said = could_not_override(reasons[0]) or said
        print(f"{name}: {redacted(' '.join(said.split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        several = int(os.environ.get("WORLD_SIZE") or 1) > 1
        why = "; if the launcher did it, another process ended: its own lines say why" if several else ""
        if speaks_for_all():
            print(f"{name}: {word(stop)}{why}", file=sys.stderr)
        if is_main_process():
            again = line(name, *redacted_words(arguments))  # of which nothing is there yet
            say_next(getattr(stop, "__notes__", [again]), sys.stderr)
        return exit_status(stop)
    except Exception as error:
        told = shortage(error)
        if debug or told is None:
            raise
        if not isinstance(told, LostProcess) or speaks_for_all():
            print(f"{name}: {redacted(str(told))}", file=sys.stderr)
        say_next(getattr(error, "__notes__", []), sys.stderr)
        return 1


@contextmanager
def _released() -> Iterator[None]:
    """The run folders that this call took are free for others at its end."""
    try:
        yield
    except Refused as refused:
        raise refused.error from None
    finally:
        while HELD:
            HELD.pop()()


def _as_line(error: BaseException) -> DiagError | None:
    """What is told in one line, with the notes that say how to go on; None for what keeps its traceback."""
    if isinstance(error, DiagError) or not isinstance(error, Exception):
        return error if isinstance(error, DiagError) else None
    told = shortage(error)
    if told is not None:
        told.__cause__ = error
        for note in getattr(error, "__notes__", []):
            told.add_note(note)
    return told


def _origin(error: BaseException | None) -> DiagError | None:
    """The DiagError that Hydra and OmegaConf wrapped into errors of their own; None where there is none."""
    while error is not None and not isinstance(error, DiagError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def _full_errors() -> Iterator[None]:
    """Hydra cuts and prints tracebacks itself unless HYDRA_FULL_ERROR is set; we want the exception."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]


def _run(name: str, config_name: str, job: Job, arguments: list[str]) -> int:
    register()
    arguments = quoted_paths(resumed(arguments))
    for argument in arguments:
        require_plugin(argument)
    refuse_together(arguments)
    refuse_two_modes(arguments)
    # `-sc install=bash` is no override: it asks Hydra for the shell's completion script. A folder of the user's own
    # (-cd) may hold any key.
    if not any(a.startswith(("-sc", "--shell", "-cd", "--config-dir")) for a in arguments):
        overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
        reason = explain_override(overrides, SCHEMAS[config_name])
        if reason is not None:
            raise DiagError(reason, usage=True)
    if not is_main_process() or replays(arguments):
        # The run folder is rank 0's, which sends it to the others (see training.job); theirs is thrown away. A replay
        # writes no run.
        ending = ExitStack()
        scratch = ending.enter_context(scratch_folder("rank"))
        ending.callback(close_logs, scratch)
        atexit.register(ending.close)
        arguments += ["hydra.output_subdir=null", override("hydra.run.dir", scratch)]
    sys.argv = [name, *arguments]
    errors: list[DiagError] = []
    folders: list[Path] = []
    app = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
    try:
        app(_collecting(job, errors, folders))()
    except BaseException as error:
        # A sweeper that asks for a failed job's value gets its error, after the others have run.
        if not BEGUN:
            for folder in folders:
                remove_if_bare(folder)
            raise
        return end_of_multirun(BEGUN.pop(), error)
    if BEGUN:
        return end_of_multirun(BEGUN.pop())
    if errors:
        for folder in folders:
            if not (folder.parent / SWEEP_FILE).is_file():  # there a job that failed is told with its log
                remove_if_bare(folder)
        raise errors[0]
    return 0


def remove_if_bare(folder: Path) -> None:
    """Remove a run folder that holds no more than what Hydra wrote before the job began, and its empty parents: a
    mistake that was found before anything was done leaves nothing behind."""
    if not folder.is_dir() or any(p.name not in (".hydra", *OWN) and p.suffix != ".log" for p in folder.iterdir()):
        return
    close_logs(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        try:
            parent.rmdir()
        except OSError:
            return


def _collecting(job: Job, errors: list[DiagError], folders: list[Path]) -> Job:
    """In a single run keep a DiagError for `run_app`, where it becomes one line; Hydra would add lines of its own.

    A multirun's job raises, so that the launcher counts it as failed and goes on with the others. Either way the job's
    own log gets the reason while it is open, with the traceback of what is no mistake of the user's.
    """

    def guarded(cfg: DictConfig) -> Any:
        hydra_cfg = HydraConfig.get()
        folder, several = Path(hydra_cfg.runtime.output_dir), hydra_cfg.mode == RunMode.MULTIRUN
        if not is_main_process():
            return job(cfg)
        with writing(folder):
            begin_job(folder, int(hydra_cfg.job.num) if several else None)
            return ended(cfg, folder, several)

    def ended(cfg: DictConfig, folder: Path, several: bool) -> Any:
        try:
            guard_configuration(folder)
            sign(folder)
            value = job(cfg)
        except BaseException as error:
            failed, reason = isinstance(error, Exception), ended_by(error)[1]
            told = _as_line(error)
            with suppress(OSError):  # a full disk may be what ended it
                end_job(folder, "failed" if failed else "interrupted", reason if told is None else str(told))
            if several and failed:
                whole = "".join(traceback.format_exception(error)) if told is None else str(told)
                log.error("failed: %s", redacted(whole))
            if not several:
                folders.append(folder)
            if several or told is None:
                raise
            errors.append(told)
            return None
        end_job(folder, "completed")
        return value

    return guarded


def end_of_multirun(folder: Path, error: BaseException | None = None) -> int:
    """Print the runs side by side on standard error (standard output ends with the last run's folder), what became of
    each job, and the next command; returns the exit status: 1 where a job did not complete, 130 where it was stopped.

    Args:
        error: what ended the sweeper: a failed job's own, already told, or another, which is told or raised here.

    Raises:
        whatever ended it before its first job began.
    """
    from dpo_diag.commands.sweep_end import ending
    from dpo_diag.diagnosis.sweep_jobs import jobs_of

    stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
    end_plan(folder, "interrupted" if stopped else "completed" if error is None else "failed")
    jobs = jobs_of([folder])[0]
    begun = [job for job in jobs if job.folder.is_dir()]
    mistaken = isinstance(error, DiagError) and error.usage and not any((j.folder / RUN_FILE).is_file() for j in begun)
    if error is not None and (not begun or mistaken):
        for job in begun:
            remove_if_bare(job.folder)
        remove_bare_multirun(folder)
        raise error
    ending(folder)
    if isinstance(error, KeyboardInterrupt):
        return exit_status(error)
    failed = [job for job in jobs if job.status != "completed"]
    if error is not None and not any(job.status == "failed" for job in failed):
        raise error
    return 1 if failed else 0


def remove_bare_multirun(folder: Path) -> None:
    """Remove a multirun's folder in which no job is left, and its empty parents."""
    if folder.is_dir() and not any(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
