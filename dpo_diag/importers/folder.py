"""A folder of a training: the trainer's state, its own log, TensorBoard events and configuration, as one run."""

from __future__ import annotations

import re
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.importers.facts import CONFIG_FILES, facts_from_file, versions_from_card
from dpo_diag.importers.formats import detect, reader
from dpo_diag.importers.parsed import Facts, Options, Parsed
from dpo_diag.records.text_files import Skipped, head_of, whole

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
OWN_LOGS = ("trainer_log.jsonl", "logging.jsonl")
_ARCHIVED = ("", ".gz", ".bz2", ".xz")
_LOG_SUFFIXES = (".jsonl", ".json", ".log", ".txt", ".csv", ".tsv", ".out", ".err", ".parquet", ".db", ".wandb")
MAX_LISTED = 5000


def read_folder(path: Path, as_name: str | None, options: Options, shown: Path) -> list[Parsed]:
    """All sources of one run in a folder; the first is the main one.

    Raises:
        DiagError: a run folder of this project, or nothing in it is known.
    """
    if (path / "run.json").is_file():
        raise DiagError("already a run folder", where=shown, hint="read it with dpo-diag explain")
    if as_name in ("ren", "wandb", "tensorboard", "trackio"):
        return [reader(as_name)(path, options)]
    special = _special(path)
    if special and not as_name:
        return [reader(special)(path, options)]
    state = _trainer_state(path)
    home = state.parent if state is not None else path
    roots = list(dict.fromkeys([path, home, home.parent] if _CHECKPOINT.search(home.name) else [path, home]))
    found: list[tuple[str, Path]] = [("hf", state)] if state is not None else []
    for root in roots:
        for name in OWN_LOGS:
            for ending in _ARCHIVED:
                if (file := root / f"{name}{ending}").is_file():
                    found.append((detect(file), file))
    events = _event_folder(roots)
    if events is not None:
        found.append(("tensorboard", events))
    if not found:
        found = _any_log(path, as_name)
    if not found:
        raise DiagError(
            "no log in the folder",
            where=shown,
            got=", ".join(sorted(p.name for p in list(path.iterdir())[:8])) or "nothing",
            expected="trainer_state.json, a trainer's log, TensorBoard events, a .wandb file or a .npy array",
            hint="name the file itself",
        )
    sources: list[Parsed] = []
    for name, file in dict.fromkeys(found):
        try:
            sources.append(reader(as_name or name)(file, options))
        except DiagError as error:
            if not sources and len(found) == 1:
                raise
            if sources:
                sources[0].notes.append(f"{file.name} was left out: {error.what}")
    sources = [s for s in sources if s.read or s is sources[0]]
    if not sources:
        raise DiagError("no log in the folder could be read", where=shown, hint="name the file itself")
    _configuration(roots, sources[0])
    return sources


def _special(path: Path) -> str | None:
    """Folders whose format is one reader's own: arrays, W&B, trackio."""
    if any(path.glob("*.npy")):
        return "ren"
    if any(path.glob("*.wandb")) or any(path.glob("offline-run-*/*.wandb")) or any(path.glob("wandb/*run-*/*.wandb")):
        return None if (path / "trainer_state.json").exists() or any(path.glob("checkpoint-*")) else "wandb"
    return None


def _trainer_state(path: Path) -> Path | None:
    """trainer_state.json of the folder itself, else of its latest checkpoint."""
    for ending in _ARCHIVED:
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
        files = sorted((p for d in ("*", "*/*", "*/*/*") for p in root.glob(d) if "tfevents" in p.name), key=_written)
        if files:
            return files[-1].parent
    return None


def _written(path: Path) -> tuple[int, str]:
    """The time in an event file's name (`events.out.tfevents.<seconds>.<host>`), which copying does not change."""
    match = re.search(r"tfevents\.(\d+)", path.name)
    return (int(match.group(1)) if match else 0, str(path))


def _any_log(path: Path, as_name: str | None) -> list[tuple[str, Path]]:
    """The one file in the folder that looks like a log.

    Raises:
        DiagError: several do.
    """
    found = []
    for file in sorted(p for p in path.rglob("*") if p.is_file())[:MAX_LISTED]:
        plain = re.sub(r"\.(gz|bz2|xz)$", "", file.name)
        if not plain.endswith(_LOG_SUFFIXES) or plain in CONFIG_FILES or plain.endswith("_config.json"):
            continue
        if plain.startswith(("tokenizer", "special_tokens", "vocab", "added_tokens", "generation", "package")):
            continue
        try:
            name = as_name or detect(file)
        except (DiagError, OSError):
            continue
        if as_name or _holds_rows(file, name):
            found.append((name, file))
    if len(found) > 1:
        names = ", ".join(str(f.relative_to(path)) for _, f in found[:6])
        raise DiagError("several logs in the folder", where=path, got=names, hint="name the one to import", usage=True)
    return found


def _holds_rows(file: Path, name: str) -> bool:
    """Text of no known form is taken for a console log: only with a printed row in it."""
    if name != "console":
        return True
    from dpo_diag.importers.console import METRIC

    return METRIC.search(head_of(file, 8 << 20)) is not None


def _configuration(roots: list[Path], main: Parsed) -> None:
    """Facts of the configuration files beside the log; a model card also names the trainer's version."""
    for root in roots:
        for name in CONFIG_FILES:
            file = root / name
            if not file.is_file():
                continue
            skipped = Skipped()
            found = facts_from_file(file, skipped)
            if found.said or found.model:
                main.facts.merge(found)
                main.extra.setdefault("configuration", []).append(name)
            main.skipped.extend(skipped)
            if name == "README.md":
                versions = versions_from_card(whole(file, skipped).decode("utf-8", "replace"))
                if "trl" in versions and main.trainer == "unknown":
                    main.trainer, main.version = "trl", versions["trl"]
                    main.extra["versions"] = versions


def model_name(facts: Facts) -> str | None:
    """The model's name, as a configuration says it."""
    name = facts.model.get("name")
    return str(name) if name else None
