"""A folder of a training: the trainer's state, its own log, TensorBoard events and configuration, as one run."""

from __future__ import annotations

import re
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.importers.facts import CONFIG_FILES, facts_from_file, versions_from_card
from dpo_diag.importers.formats.tensorboard import written
from dpo_diag.importers.log_format import FORMATS, METRIC_KEY, detect, formats_in_order
from dpo_diag.importers.parsed import Options, Parsed
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
    state = _trainer_state(path)
    home = state.parent if state is not None else path
    roots = list(dict.fromkeys([path, home, home.parent] if _CHECKPOINT.search(home.name) else [path, home]))
    logs = [("hf", state)] if state is not None else []
    own = (root / f"{name}{ending}" for root in roots for name in OWN_LOGS for ending in _COMPRESSED)
    logs += [(detect(file).name, file) for file in own if file.is_file()]
    events = _event_folder(roots)
    if events is not None:
        logs.append(("tensorboard", events))
    logs = logs or _only_log(path, as_name)
    if not logs:
        raise DiagError(
            "no log in the folder",
            where=shown,
            got=", ".join(sorted(p.name for p in list(path.iterdir())[:8])) or "nothing",
            expected="trainer_state.json, a trainer's log, TensorBoard events, a .wandb file or a .npy array",
            hint="name the file itself",
        )
    sources: list[Parsed] = []
    for name, file in dict.fromkeys(logs):
        try:
            sources.append(FORMATS[as_name or name].read(file, options))
        except DiagError as error:
            if len(logs) == 1:
                raise
            if sources:
                hint = f" ({error.hint})" if error.hint else ""
                sources[0].notes.append(f"{file.name} was left out: {error.what}{hint}")
    if not sources:
        raise DiagError("no log in the folder could be read", where=shown, hint="name the file itself")
    sources = [s for s in sources if s.n_read or s is sources[0]]
    _add_configuration(roots, sources[0])
    return sources


def _trainer_state(path: Path) -> Path | None:
    """trainer_state.json of the folder itself, else of its latest checkpoint."""
    for ending in _COMPRESSED:
        if (path / f"trainer_state.json{ending}").is_file():
            return path / f"trainer_state.json{ending}"
    checkpoints = []
    for candidate in sorted(path.glob("**/trainer_state.json"))[:MAX_LISTED]:
        match = _CHECKPOINT.search(candidate.parent.name)
        checkpoints.append((int(match.group(1)) if match else 1 << 60, str(candidate), candidate))
    return max(checkpoints)[2] if checkpoints else None


def _event_folder(roots: list[Path]) -> Path | None:
    """The folder of the latest TensorBoard events in or just below the folder."""
    for root in roots:
        files = [p for depth in ("*", "*/*", "*/*/*") for p in root.glob(depth) if "tfevents" in p.name]
        if files:
            return max(files, key=written).parent
    return None


def _only_log(path: Path, as_name: str | None) -> list[tuple[str, Path]]:
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
