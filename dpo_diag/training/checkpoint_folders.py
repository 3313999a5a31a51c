"""The folder that a training writes its checkpoints to: which one it goes on from, how one is put there, which go.

A checkpoint is written below `ASIDE`, sealed and renamed: a folder `checkpoint-N` is whole the moment it is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dpo_diag.errors import DiagError
from dpo_diag.text import some
from dpo_diag.training.whole_checkpoint import check_whole, checkpoint_step, seal, step_in_name, sync_folder

ASIDE = ".writing"
"""Folder beside the checkpoints in which the next one is written, and from which old ones are removed."""
REPLACED = "replaced-"
"""Begins the name, in that folder, of a checkpoint whose place another one takes."""
PASSED_OVER = "passed-over"
"""Folder beside the checkpoints for those beyond the one that a training went on from: damaged, or not wanted."""
KEPT = 2
"""Of the checkpoints that nobody asked for by step so many stay: the last, and one to fall back on."""


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that was found whole.

    Attributes:
        folder: where it is.
        step: optimizer steps done.
        passed_over: later ones that were not taken, each with the reason in one line.
        fresh_optimizer: the optimizer begins anew, and so do the random states.
    """

    folder: str
    step: int
    passed_over: tuple[str, ...] = ()
    fresh_optimizer: bool = False

    def line(self) -> str:
        """What is said before it is loaded."""
        fresh = ", with an optimizer that begins anew" if self.fresh_optimizer else ""
        over = f"; passed over {'; '.join(self.passed_over)}" if self.passed_over else ""
        return f"goes on from step {self.step}, {self.folder}{fresh}{over}"


def checkpoints_in(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """Step in the name -> checkpoint folder, by step; damaged ones are among them."""
    found = {step_in_name(path): path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()}
    return {step: found[step] for step in sorted(s for s in found if s is not None)}


def at_checkpoint(folder: str | os.PathLike[str], *, fresh_optimizer: bool = False) -> Resumed:
    """A checkpoint that was named.

    Raises:
        DiagError: it is not whole: which file, and what to do about it.
    """
    check_whole(Path(folder), fresh_optimizer=fresh_optimizer)
    return Resumed(os.fspath(folder), checkpoint_step(folder), fresh_optimizer=fresh_optimizer)


def choose_checkpoint(
    folder: str | os.PathLike[str], step: int | None = None, *, before: int | None = None,
    fresh_optimizer: bool = False, only_look: bool = False,
) -> Resumed:  # fmt: skip
    """The checkpoint in a folder to go on from: that of `step`, or the last whole one, of a step below `before`.

    Args:
        only_look: the training may be another process, and running: what it was replacing is taken where it lies. To
            give it its name back would take the name from the checkpoint that is about to get it.

    Raises:
        DiagError: none, or the one of `step` is not whole.
    """
    found_here = checkpoints_in(folder)
    if only_look:
        found_here = {**_replaced(Path(folder)), **found_here}
    else:
        give_back(Path(folder))
        found_here = checkpoints_in(folder)
    known = {n: path for n, path in sorted(found_here.items()) if before is None or n < before}
    if step is not None and step not in known:
        raise DiagError(
            f"no checkpoint of step {step}", where=folder, got=f"steps {some(known, 20)}" if known else "none",
            hint="checkpoint=N names one of them", usage=True,
        )  # fmt: skip
    if step is not None:
        return at_checkpoint(known[step], fresh_optimizer=fresh_optimizer)
    passed: list[str] = []
    for path in reversed(known.values()):
        try:
            found = at_checkpoint(path, fresh_optimizer=fresh_optimizer)
        except DiagError as error:
            passed.append(f"{path.name} ({error.what}: {_place(error, path)})")
            continue
        return Resumed(found.folder, found.step, tuple(passed), fresh_optimizer)
    raise DiagError(
        "nothing to resume from", where=folder, got="; ".join(passed) or "no checkpoint",
        hint="start again; trainer.save_minutes says how often a run saves",
    )  # fmt: skip


def _place(error: DiagError, checkpoint: Path) -> str:
    """The file in its checkpoint, or what is wanted in it."""
    where = Path(str(error.where))
    return str(error.expected if where == checkpoint else where.relative_to(checkpoint))


def put_in_place(aside: Path, folder: Path) -> None:
    """Seal a checkpoint that was written aside, and give it its name; one of that name goes, behind that: whenever it
    is killed, one of the two is there, or comes back (`give_back`)."""
    seal(aside)
    before = aside.with_name(f"{REPLACED}{folder.name}")
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
    try:
        aside.rename(folder)
    except OSError:
        give_back(folder.parent)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def give_back(folder: Path) -> None:
    """A checkpoint that was to be replaced, whose training was killed before it was, gets its name back."""
    for before in (folder / ASIDE).glob(f"{REPLACED}*"):
        if not (named := folder / before.name.removeprefix(REPLACED)).exists():
            before.rename(named)


def _replaced(folder: Path) -> dict[int, Path]:
    """Step -> a checkpoint that is being replaced, or was to be."""
    found = {step_in_name(Path(p.name.removeprefix(REPLACED))): p for p in (folder / ASIDE).glob(f"{REPLACED}*")}
    return {step: path for step, path in found.items() if step is not None}


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; killed in the middle, no half of it keeps its name."""
    if checkpoint.exists():
        gone = checkpoint.parent / ASIDE / f"removed-{checkpoint.name}"
        shutil.rmtree(gone, ignore_errors=True)
        gone.parent.mkdir(exist_ok=True)
        checkpoint.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed training was writing or removing; what it was replacing comes back."""
    give_back(folder)
    shutil.rmtree(folder / ASIDE, ignore_errors=True)


def set_aside_after(folder: Path, step: int) -> list[str]:
    """Move checkpoints beyond a step to `PASSED_OVER`, as a training goes on from there: their rows go, and the next
    ones are of another way. Returns their names."""
    beyond = [path for known, path in checkpoints_in(folder).items() if known > step]
    for path in beyond:
        target = folder / PASSED_OVER / path.name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    return [path.name for path in beyond]


def superfluous(
    steps: Collection[int], *, limit: int | None, every: int | None, by_clock: bool, protected: Collection[int]
) -> list[int]:
    """Steps whose checkpoints go, the oldest first; by step, whatever a clock says.

    Args:
        limit: keep so many, the protected ones among them, which stay in any case; None: all that were asked for.
        every: the steps that were asked for are multiples of this; None: no step was.
        by_clock: others were written by the clock; of those `KEPT` stay where there is no limit.
        protected: the last one, the best one.

    >>> superfluous([2, 4, 6, 8], limit=2, every=2, by_clock=False, protected=[2, 8])
    [4, 6]
    >>> superfluous([10, 13, 17, 20, 24], limit=None, every=10, by_clock=True, protected=[24])
    [13]
    """
    known = sorted(steps)
    if limit is None or limit <= 0:
        known = [s for s in known if every is None or s % every] if by_clock else []
        limit = KEPT
    removable = [s for s in known if s not in protected]
    kept = max(limit - (len(known) - len(removable)), 0)
    return removable[: max(len(removable) - kept, 0)]
