"""A folder of a training: the trainer's state, its own log, TensorBoard events and configuration, as one run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.importers.facts import CONFIG_FILES, facts_from_file, versions_from_card
from dpo_diag.importers.formats.tensorboard import event_files
from dpo_diag.importers.log_format import FORMATS, METRIC_KEY, detect, formats_in_order
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.several import choose, named, take
from dpo_diag.records.run_lock import before_first_record
from dpo_diag.records.text_files import head_of, whole

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
OWN_LOGS = ("trainer_log.jsonl", "logging.jsonl")
_COMPRESSED = ("", ".gz", ".bz2", ".xz")
_LOG_SUFFIXES = (".jsonl", ".json", ".log", ".txt", ".csv", ".tsv", ".out", ".err", ".parquet", ".db", ".wandb")
MAX_LISTED = 5000


def read_folder(path: Path, as_name: str | None, options: Options, shown: Path) -> list[Parsed]:
    """All sources of one run in a folder; the first is the main one.

    Args:
        shown: what errors call the folder (the archive that it was unpacked from).

    Raises:
        DiagError: a run folder of this project, or nothing in it is known.
    """
    if (path / "run.json").is_file():
        raise DiagError("already a run folder", where=shown, hint="read it with dpo-diag explain")
    if as_name is not None and FORMATS[as_name].reads_folders:
        return [FORMATS[as_name].read(path, options)]
    if as_name is None:
        for log_format in formats_in_order():
            if log_format.sniff_folder is not None and log_format.sniff_folder(path):
                return [log_format.read(path, options)]
    states = _trainer_states(path)
    name, state = _state_of(states, options.run)
    home = state.parent if state is not None else path
    roots = list(dict.fromkeys([path, home, home.parent] if _CHECKPOINT.search(home.name) else [path, home]))
    if len(states) > 1 and path not in (home, home.parent):
        roots = roots[1:]  # the folder above holds other runs
    logs = [("hf", state)] if state is not None else []
    own = (root / f"{log}{ending}" for root in roots for log in OWN_LOGS for ending in _COMPRESSED)
    logs += [(detect(file).name, file) for file in own if file.is_file()]
    events = next((root for root in roots if event_files(root)), None)
    if events is None and states and options.run is not None and name is None:
        choose(list(states), options.run, path)  # raises: there is no such run
    if events is not None:
        # A run of the events that `--run` names is another than the state's, or the only one.
        by_run = options.run is not None and name is None
        logs = [("tensorboard", events)] if by_run else [*logs, ("tensorboard", events)]
    logs = logs or _only_log(path, as_name, options)
    if not logs:
        raise DiagError(
            "no log in the folder",
            where=shown,
            got=", ".join(sorted(p.name for p in list(path.iterdir())[:8])) or "nothing",
            expected="trainer_state.json, a trainer's log, TensorBoard events, a .wandb file or a .npy array",
            hint=before_first_record(path) or "name the file itself",
        )
    sources: list[Parsed] = []
    for form, file in dict.fromkeys(logs):
        try:
            given = options if name is None else replace(options, run=None)  # --run has named the folder
            sources.append(FORMATS[as_name or form].read(file, given))
        except DiagError as error:
            if len(logs) == 1:
                raise
            if sources:
                hint = f" ({error.hint})" if error.hint else ""
                sources[0].notes.append(f"{file.name} was left out: {error.what}{hint}")
    if not sources:
        raise DiagError("no log in the folder could be read", where=shown, hint="name the file itself")
    sources = [s for s in sources if s.n_read or s is sources[0]]
    if name is not None:
        take(sources[0], list(states), name)
    _add_configuration(roots, sources[0])
    return sources


def _trainer_states(path: Path) -> dict[str, Path]:
    """Run -> trainer_state.json: of the folder itself, else of each training below it that of its latest checkpoint.

    The training that got furthest comes last.
    """
    for ending in _COMPRESSED:
        if (path / f"trainer_state.json{ending}").is_file():
            return {path.name: path / f"trainer_state.json{ending}"}
    latest: dict[Path, tuple[int, str, Path]] = {}
    for candidate in sorted(path.glob("**/trainer_state.json"))[:MAX_LISTED]:
        match = _CHECKPOINT.search(candidate.parent.name)
        home = candidate.parent.parent if match else candidate.parent
        found = (int(match.group(1)) if match else 1 << 60, str(candidate), candidate)
        latest[home] = max(latest.get(home, found), found)
    # An output folder's own state and those of its checkpoints are one training.
    return {home.relative_to(path).as_posix(): latest[home][2] for home in sorted(latest, key=latest.__getitem__)}


def _state_of(states: dict[str, Path], run: str | None) -> tuple[str | None, Path | None]:
    """(run's name where several are there or it was asked for, its state)."""
    if not states:
        return None, None
    found = named(list(states), run) if run is not None else None
    taken = found or list(states)[-1]
    return (taken if found or (len(states) > 1 and run is None) else None), states[taken]


def _only_log(path: Path, as_name: str | None, options: Options) -> list[tuple[str, Path]]:
    """The one file in the folder that is a log.

    Raises:
        DiagError: several are.
    """
    logs = []
    for file in sorted(p for p in path.rglob("*") if p.is_file())[:MAX_LISTED]:
        plain = re.sub(r"\.(gz|bz2|xz)$", "", file.name)
        if not plain.endswith(_LOG_SUFFIXES) or plain in CONFIG_FILES or plain.endswith("_config.json"):
            continue
        if plain.startswith(("tokenizer", "special_tokens", "vocab", "added_tokens", "generation", "package")):
            continue
        try:
            name = as_name or detect(file).name
        except (DiagError, OSError):
            continue
        # Any text is taken for a console log: here only with a printed row in it.
        if as_name or name != "console" or METRIC_KEY.search(head_of(file, 8 << 20)) is not None:
            logs.append((name, file))
    if options.run is not None and len(logs) > 1:
        by_name = {file.relative_to(path).as_posix(): (name, file) for name, file in logs}
        return [by_name[choose(list(by_name), options.run, path)]]
    if len(logs) > 1:
        names = ", ".join(str(file.relative_to(path)) for _, file in logs[:6])
        raise DiagError("several logs in the folder", where=path, got=names, hint="name the one to import", usage=True)
    return logs


def _add_configuration(roots: list[Path], main: Parsed) -> None:
    """Facts of the configuration files beside the log; a model card also names the trainer's version."""
    for file in (root / name for root in roots for name in CONFIG_FILES):
        if not file.is_file():
            continue
        facts = facts_from_file(file, main.skipped)
        if facts.stated_in or facts.model:
            main.facts.merge(facts)
            main.details.setdefault("configuration", []).append(file.name)
        if file.name == "README.md":
            versions = versions_from_card(whole(file, main.skipped).decode("utf-8", "replace"))
            if "trl" in versions and main.trainer == "unknown":
                main.trainer, main.version = "trl", versions["trl"]
                main.details["versions"] = versions
