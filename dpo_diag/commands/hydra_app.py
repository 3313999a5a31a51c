"""What the Hydra apps share: where conf/ is, the schema, errors in one line, "did you mean", several processes.

Heavy imports (torch, trl) stay inside the jobs, so that `--help`, `--cfg job` and shell completion are fast.
"""

from __future__ import annotations

import atexit
import dataclasses
import difflib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dpo_diag.config import Config, conf_dir
from dpo_diag.config_checkpoints import GenerateConfig, ScoreConfig
from dpo_diag.errors import DiagError

T = TypeVar("T")
SCHEMAS: dict[str, type] = {"config": Config, "score": ScoreConfig, "generate": GenerateConfig}
"""conf/NAME.yaml -> its schema, known to Hydra as base_NAME."""


def register() -> None:
    """Make the schemas known to Hydra under the names that the root files begin with."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"base_{name}", node=schema)


def to_config(cfg: DictConfig, schema: type[T] = Config) -> T:  # type: ignore[assignment]
    """The composed configuration as dataclasses, interpolations resolved."""
    document = OmegaConf.to_container(cfg, resolve=True)
    merged = OmegaConf.merge(OmegaConf.structured(schema), document)
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def is_main_process() -> bool:
    """Whether this is rank 0 of a launch, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def valid_keys(schema: type = Config) -> dict[str, list[str]]:
    """Dotted prefix -> keys that stand there, from the schema; prefixes whose keys are free are absent."""
    keys: dict[str, list[str]] = {"": []}
    for f in dataclasses.fields(schema):
        keys[""].append(f.name)
        default = f.default_factory() if callable(f.default_factory) else None
        if dataclasses.is_dataclass(default):
            keys[f.name] = [g.name for g in dataclasses.fields(default)]
    keys[""] += [p.name for p in conf_dir().iterdir() if p.is_dir()] + ["hydra"]
    return keys


def _nearest(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else f"valid: {', '.join(sorted(set(choices)))}"


def explain_override(overrides: list[str], schema: type = Config) -> str | None:
    """The first override that names an unknown key, group or option, with its nearest valid one; None if all exist."""
    keys, root = valid_keys(schema), conf_dir()
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException:
            return f"override {text!r} cannot be parsed; expected key=value; hint: quote values with space, comma or ="
        key = str(parsed.key_or_group or "")
        if key.startswith("hydra") or parsed.is_add() or not key:
            continue
        prefix, _, name = key.rpartition(".")
        group = root / key.replace(".", "/")
        if "." not in key and group.is_dir():
            options = [p.stem for p in group.glob("*.yaml")]
            values = [text.split("=", 1)[1]] if "=" in text else []
            for value in [v.strip() for v in values[0].split(",")] if values else []:
                if value not in options and value not in ("null", ""):
                    return f"{key} has no option {value!r}; {_nearest(value, options)}"
            continue
        if prefix in keys and name not in keys[prefix]:
            where = f"{prefix}." if prefix else ""
            near = _nearest(name, keys[prefix])
            return f"unknown key {key!r}; {near.replace('did you mean ', 'did you mean ' + where)}"
        if prefix and prefix not in keys and prefix.split(".")[0] not in keys[""]:
            return f"unknown key {key!r}; {_nearest(prefix.split('.')[0], keys[''])}"
    return None


def _resumed(arguments: list[str]) -> list[str]:
    """`resume=RUN` brings back that run's own overrides and folder; overrides given now come last and win."""
    run = next((a.split("=", 1)[1] for a in arguments if a.startswith("resume=")), None)
    if run is None or run in ("null", ""):
        return arguments
    folder = Path(run)
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise DiagError(
            "nothing to resume",
            where=run,
            got="no .hydra/overrides.yaml",
            expected="a run folder of dpo-train",
            usage=True,
        )
    before = [str(o) for o in OmegaConf.load(saved) if not str(o).startswith("resume=")]
    return [*before, *arguments, f"hydra.run.dir={folder.resolve()}"]


def _told_once(job: Callable[[DictConfig], Any], told: list[DiagError]) -> Callable[[DictConfig], Any]:
    """In a single run keep a DiagError for `run_app`, where it becomes one line; Hydra would add lines of its own.

    A multirun's job raises, so that the launcher counts it as failed and goes on with the others.
    """

    def guarded(cfg: DictConfig) -> Any:
        try:
            return job(cfg)
        except DiagError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            told.append(error)
            return None

    return guarded


def run_app(name: str, config_name: str, job: Callable[[DictConfig], Any], argv: list[str] | None = None) -> int:
    """Run a Hydra app; returns the exit status: 0 success, 1 failure, 2 usage.

    Errors are one line unless `--debug` or HYDRA_FULL_ERROR is set.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    before = os.environ.get("HYDRA_FULL_ERROR")
    debug = "--debug" in arguments or before == "1"
    arguments = [a for a in arguments if a != "--debug"]
    # Two OpenMP threads that spin while they wait are slower than one on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # TRL 1.16 calls names that transformers 5.23 deprecates, at every step.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    # Hydra prunes and prints tracebacks itself unless told not to; we want the exception.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    told: list[DiagError] = []
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    register()
    try:
        # `-sc install=bash` is no override: it asks Hydra for the shell's completion script.
        completion = any(a in ("-sc", "--shell-completion", "--shell_completion") for a in arguments)
        if not completion and "--config-dir" not in " ".join(arguments):
            wrong = explain_override(overrides, SCHEMAS[config_name])
            if wrong is not None:
                raise DiagError(wrong, usage=True)
        arguments = _resumed(arguments)
        if not is_main_process():
            # The run folder is rank 0's, which tells it to the others (see training.job); theirs is thrown away.
            scratch = tempfile.mkdtemp(prefix="dpo-diag-rank-")
            atexit.register(shutil.rmtree, scratch, ignore_errors=True)
            arguments += ["hydra.output_subdir=null", f"hydra.run.dir={scratch}"]
        sys.argv = [name, *arguments]
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(_told_once(job, told))()
        if told:
            raise told[0]
        return 0
    except DiagError as error:
        if debug:
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return 2 if error.usage else 1
    except (HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        # What Hydra says of a wrong type stands in the cause.
        told = [str(e) for e in (error, error.__cause__) if e is not None]
        print(f"{name}: {' '.join('; '.join(told).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    finally:
        if before is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
