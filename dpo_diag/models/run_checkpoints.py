"""The checkpoint behind a step of a run's records: in its own folder, where run.json says, or named by hand."""

from __future__ import annotations

import glob
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.models.checkpoints import POLICY, REFERENCE, Checkpoint, adapter_base, find_checkpoints
from dpo_diag.models.smollm2 import NAME, smollm2_folder
from dpo_diag.records import Run


def checkpoint_of(run: Run, step: int | str, named: str | None = None, option: str = "--checkpoint-to") -> Checkpoint:
    """The checkpoint that the records of `step` ("ref": the reference; 0: the model before training) were made with.

    Looked for, in this order: `named`; RUN/checkpoints; the folder of the model that run.json names; and for the
    reference and step 0 the reference that run.json names, or the base model of the run's adapters.

    Raises:
        DiagError: none is there; names the option that sets it.
    """
    if named is not None:
        if named == "smollm2":
            return Checkpoint(str(smollm2_folder()))
        found = find_checkpoints([named])
        if len(found) != 1:
            raise DiagError("one checkpoint is wanted", where=option, got=len(found), usage=True)
        return found[0]
    own = _own(run)
    if step != REFERENCE:
        for checkpoint in own:
            if checkpoint.step == int(step):
                return checkpoint
    if step in (REFERENCE, 0):
        names = [_name(run, "reference"), *(adapter_base(c) for c in own if c.is_adapter)]
        for name in names:
            folder = _folder(run, name) if name else None
            if folder is not None:
                return Checkpoint(str(folder), REFERENCE if step == REFERENCE else POLICY, 0)
    raise DiagError(
        f"no checkpoint of {'the reference' if step == REFERENCE else f'step {step}'} found", where=run.path,
        got=f"checkpoints of steps {', '.join(str(c.step) for c in own)}" if own else "no checkpoints",
        hint=f"name its folder with {option}",
    )  # fmt: skip


def _own(run: Run) -> list[Checkpoint]:
    """Policy checkpoints in the run's folder and, for scored ones, beside the model that run.json names."""
    patterns = [Path(run.path) / "checkpoints"]
    folder = _folder(run, _name(run, "model"))
    if folder is not None:
        patterns.append(folder.parent)
    for parent in patterns:
        try:
            found = find_checkpoints([f"{glob.escape(str(parent))}/*"])
        except DiagError:
            continue
        # A folder without a step of its own would pass for step 0.
        numbered = [c for c in found if c.step > 0]
        if numbered:
            return numbered
    return []


def _name(run: Run, field: str) -> str | None:
    entry = run.meta.get(field)
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and name else None


def _folder(run: Run, name: str | None) -> Path | None:
    """The model folder of a recorded name: absolute, or relative to here or to a folder above the run."""
    if name is None:
        return None
    if name == NAME:
        try:
            return smollm2_folder()
        except DiagError:
            return None
    for root in (Path.cwd(), *Path(run.path).resolve().parents):
        folder = root / name
        if any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            return folder
    return None
