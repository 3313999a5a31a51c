"""Folders of TensorBoard events as runs: each folder is one, but writers make folders for other ends as well.

`add_scalars("loss", {"train": ..., "eval": ...})` writes `loss_train/` and `loss_eval/` below the run's own folder,
each with the tag `loss`; Keras writes `train/` and `validation/`; `add_hparams` a folder without a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dpo_diag.importers.keys import SPLIT_WORDS
from dpo_diag.records.schemas import SIDES

Point = tuple[int, str, float]
"""(step, tag, value)."""


@dataclass
class Events:
    """What the event files of one folder hold.

    Attributes:
        written: when the newest of them was begun.
        texts: (tag, text, file).
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    written: tuple[int, str] = (0, "")
    points: list[Point] = field(default_factory=list)
    texts: list[tuple[str, str, str]] = field(default_factory=list)


def runs_of(folders: Iterable[Events], root: Path) -> dict[str, Events]:
    """Runs by their folder's path below the root, in order of time; what belongs to one is in it."""
    known = {events.folder: events for events in folders}
    runs: dict[Path, Events] = {}
    for folder in sorted(known):
        events = known[folder]
        above = next((parent for parent in folder.parents if parent in known), None)
        if not events.points and above is not None:
            home, points = above, events.points
        else:
            key = _key(events, above == folder.parent)
            home = folder if key is None else folder.parent
            points = events.points if key is None else [(step, key, value) for step, _, value in events.points]
            if folder.name.lower() in SPLIT_WORDS and folder != root:
                home = folder.parent
                points = [(step, f"{folder.name.lower()}/{tag}", value) for step, tag, value in events.points]
        run = runs.setdefault(home, Events(home))
        run.files += events.files
        run.points += points
        run.texts += events.texts
        run.written = max(run.written, events.written)
    ordered = sorted((run for run in runs.values() if run.points), key=lambda run: run.written)
    return {(run.folder.relative_to(root).as_posix() if run.folder != root else root.name): run for run in ordered}


def _key(events: Events, is_below: bool) -> str | None:
    """The key of an `add_scalars` folder's numbers: of `loss_eval/` with the tag `loss` eval/loss; None for any other.

    Args:
        is_below: the folder above holds events, as that of the writer itself does.
    """
    tags = {tag for _, tag, _ in events.points}
    tag = tags.pop() if len(tags) == 1 else ""
    start = tag.replace("/", "_") + "_"
    suffix = events.folder.name[len(start) :]
    if not tag or not events.folder.name.startswith(start) or not suffix:
        return None
    if suffix.lower() in SPLIT_WORDS:
        return f"{suffix.lower()}/{tag}"
    return f"{tag}/{suffix}" if is_below or suffix in SIDES else None
