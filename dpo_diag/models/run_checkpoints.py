"""The checkpoints behind a run's records: in its own folder, where run.json says, or named by hand."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpo_diag.errors import DiagError
from dpo_diag.models.checkpoints import POLICY, REFERENCE, Checkpoint, adapter_base, find_checkpoints, step_of
from dpo_diag.models.smollm2 import NAME, smollm2_folder
from dpo_diag.records import Run
from dpo_diag.text import some


def checkpoint_of(run: Run, step: int | str, named: str | None = None, option: str = "--checkpoint-to") -> Checkpoint:
    """The checkpoint that the records of `step` ("ref": the reference; 0: the model before training) were made with.

    Looked for, in this order: `named`; RUN/checkpoints; for a scored run the folder of the model that run.json names;
    and for the reference and step 0 the reference that run.json names, or the base model of the run's adapters.

    Raises:
        DiagError: none is there; names the option that sets it.
    """
    if named is not None:
        matches = find_checkpoints([named])
        if len(matches) != 1:
            raise DiagError("one checkpoint is wanted", where=option, got=len(matches), usage=True)
        return matches[0]
    own = _policies(run)
    if step != REFERENCE:
        for checkpoint in own:
            if checkpoint.step == int(step):
                return checkpoint
    if step in (REFERENCE, 0):
        folder = _reference(run, own)
        if folder is not None:
            return Checkpoint(folder, REFERENCE if step == REFERENCE else POLICY, 0)
    raise DiagError(
        f"no checkpoint of {'the reference' if step == REFERENCE else f'step {step}'} found", where=run.path,
        got=f"checkpoints of steps {', '.join(str(c.step) for c in own)}" if own else "no checkpoints",
        hint=f"name its folder with {option}",
    )  # fmt: skip


def checkpoints_of(run: Run, also: Sequence[str] = ()) -> list[Checkpoint]:
    """All of a run that can be asked: the reference (which is the policy at step 0, unless another stands there), other
    models, the policy's checkpoints by step.

    Args:
        also: NAME=PATH entries.

    Raises:
        DiagError: there are none.
    """
    own = _policies(run)
    named = find_checkpoints(also) if also else []
    if not any(c.model == REFERENCE for c in named):
        folder = _reference(run, own)
        if folder is not None:
            named.insert(0, Checkpoint(folder, REFERENCE, 0))
    places = {(c.model, c.step): c for c in [*named, *own]}
    if not places:
        raise DiagError(
            "no model to ask", where=run.path, got="no checkpoints/ and no reference on this machine",
            hint="name models, e.g. --also mine=PATH",
        )  # fmt: skip
    return sorted(places.values(), key=lambda c: (c.model == POLICY, c.model != REFERENCE, c.step, c.model))


def start_not_here(run: Run, known: Sequence[Checkpoint]) -> str:
    """Why the model before training is not among the checkpoints, and how to name it; "" where it is."""
    if any(c.model == REFERENCE or c.step == 0 for c in known):
        return ""
    reference = run.info.reference
    where = reference.folder or reference.name
    return f"the model before training is not on this machine{f' ({where})' if where else ''}; --also ref=PATH names it"


def choose(known: Sequence[Checkpoint], steps: str | None, limit: int = 4) -> list[Checkpoint]:
    """The checkpoints that a user names (`0,20,ref`), in that order; None for the first, the last and some between.

    Step 0 is the reference where no checkpoint of step 0 was saved.

    Raises:
        DiagError: one that is not there, or twice.
    """
    if steps is None:
        if len(known) <= limit:
            return list(known)
        return [known[i] for i in sorted({round(x) for x in np.linspace(0, len(known) - 1, limit)})]
    chosen: list[Checkpoint] = []
    for name in [part.strip() for part in steps.split(",") if part.strip()]:
        matches = [c for c in known if name == c.model or (c.model == POLICY and name == str(c.step))]
        if not matches and name == "0":
            matches = [c for c in known if c.model == REFERENCE]
        if not matches or matches[-1] in chosen:
            names = some((c.step if c.model == POLICY else c.model for c in known), shown=20)
            raise DiagError(
                "named twice" if matches else "no such checkpoint on this machine", where="--steps", got=name,
                expected=f"some of {names}", hint=None if matches else "or name its folder: --also NAME=PATH",
                usage=True,
            )  # fmt: skip
        chosen.append(matches[-1])
    if not chosen:
        raise DiagError("no steps", where="--steps", got=repr(steps), expected="e.g. 0,20,40", usage=True)
    return chosen


def _policies(run: Run) -> list[Checkpoint]:
    """The run's checkpoints whose step is known: saved by a training, or beside the model that was scored."""
    parents = [run.path / "checkpoints"]
    scored = _folder(run, run.info.model.name) if run.info.kind == "scored" else None
    if scored is not None:
        parents.append(scored.parent)
    for parent in parents:
        try:
            checkpoints = find_checkpoints([f"{glob.escape(str(parent))}/*"])
        except DiagError:
            continue
        # A folder without a step of its own would pass for step 0.
        if numbered := [c for c in checkpoints if step_of(Path(c.path)) is not None]:
            return numbered
    return []


def _reference(run: Run, own: Sequence[Checkpoint]) -> str | None:
    """Folder of the model before training, if it is on this machine."""
    names = [run.info.reference.folder, run.info.reference.name, *(adapter_base(c) for c in own if c.is_adapter)]
    folders = (_folder(run, name) for name in dict.fromkeys(names))
    return next((str(folder) for folder in folders if folder is not None), None)


def _folder(run: Run, name: str | None) -> Path | None:
    """The model folder of a recorded name: absolute, relative to here or to a folder above the run, or in the cache of
    the hub's."""
    if not name:
        return None
    if name == NAME:
        try:
            return smollm2_folder()
        except DiagError:
            return None
    # Relative names were written from where the training was started.
    for root in (Path.cwd(), *run.path.resolve().parents):
        folder = root / name
        if any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            return folder
    return _downloaded(name)


def _downloaded(name: str) -> Path | None:
    """The folder of a hub model in this machine's cache; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
