"""Whether a checkpoint is whole: every file is what was written, its step its folder's, its weights finite.

Whoever writes a checkpoint seals it: a manifest with each file's size and SHA-256, written last. A checkpoint of
another writer (TRL's own trainer, an older version) has none; its files' own checksums are read.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import read_json
from dpo_diag.records.files import write_json
from dpo_diag.records.saved import MANIFEST

_CARD = "README.md"
"""peft's model card, which people write in and no training reads."""
_NAMED = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""How torch's files began before they were zip archives: a number of its own, pickled."""
_PIECE = 1 << 26
"""Elements of a tensor that are looked at together."""
_MEND = "resume from another checkpoint: checkpoint=N (in a script resume_from_checkpoint=FOLDER)"
_FRESH = f"{_MEND}, or go on without its optimizer: fresh_optimizer=true"
# Of each kind of state at least one must be there; FSDP writes folders, DeepSpeed all of it into one.
_WEIGHTS = (
    "model*.safetensors", "adapter_model.safetensors", "*/adapter_model.safetensors", "pytorch_model*",
    "adapter_model.bin", "global_step*",
)  # fmt: skip
_STATES = {
    "optimizer": (OPTIMIZER_NAME, "optimizer*", "rank*-optimizer.pt", "global_step*"),
    "learning rate's schedule": (SCHEDULER_NAME, "global_step*"),
    "random state": ("rng_state.pth", "rng_state*.pth"),
}
_NOT_NEEDED = ("optimizer*", "rank*-optimizer.pt", SCHEDULER_NAME, SCALER_NAME, "rng_state*.pth", "dpo_diag_window*")
"""What an optimizer that begins anew does without."""


def step_in_name(folder: Path) -> int | None:
    """The step that a folder's name says; None for any other name."""
    match = _NAMED.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def seal(folder: Path) -> None:
    """Write the manifest of a checkpoint whose files are all written; all of it is on the disk afterwards."""
    files = {}
    for path in _files(folder):
        mode: str = "rb" if os.name == "posix" else "r+b"  # Windows brings to the disk what it may write
        file: Any
        with path.open(mode) as file:
            files[path.relative_to(folder).as_posix()] = {
                "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }  # fmt: skip
            os.fsync(file.fileno())
    write_json(folder / MANIFEST, {"files": files})
    for place in (*{(folder / name).parent for name in files}, folder):
        sync_folder(place)


def sync_folder(folder: Path) -> None:
    """Names in a folder are on the disk, where the system can say so (POSIX)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_whole(folder: Path, *, fresh_optimizer: bool = False) -> None:
    """A training can go on from this checkpoint.

    Args:
        fresh_optimizer: only the step and the weights are wanted.

    Raises:
        DiagError: the first file that is not as it must be, and what to do about it.
    """
    if not folder.is_dir():
        raise DiagError("no such checkpoint", where=folder, hint=_MEND)
    _check_step(folder)
    _check_files(folder, fresh_optimizer)
    if not _any(folder, _WEIGHTS):
        raise DiagError("the checkpoint has no weights", where=folder, expected=" or ".join(_WEIGHTS[:2]), hint=_MEND)
    for what, names in () if fresh_optimizer else _STATES.items():
        if not _any(folder, names):
            raise DiagError(f"the {what} is missing", where=folder, expected=names[0], hint=_FRESH)
    for path in _weights(folder):
        _check_finite(path)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, _CARD))


def _weights(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if path.suffix == ".safetensors"]


def _any(folder: Path, names: Iterable[str]) -> bool:
    return any(True for name in names for _ in folder.glob(name))


def _is_state(name: str) -> bool:
    return any(fnmatch(name.partition("/")[0], pattern) for pattern in _NOT_NEEDED)


def _check_step(folder: Path) -> None:
    file, named = folder / TRAINER_STATE_NAME, step_in_name(folder)
    step = checkpoint_step(folder)
    if named is not None and step != named:
        raise DiagError(
            "the checkpoint's state is of another step", where=file, got=f"step {step}", expected=f"step {named}",
            hint=_MEND,
        )  # fmt: skip


def checkpoint_step(folder: str | os.PathLike[str]) -> int:
    """Optimizer steps done when a checkpoint was written, from its trainer_state.json.

    Raises:
        DiagError: the file is missing or says none.
    """
    return int(state_of(folder)["global_step"])


def state_of(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint's trainer_state.json, which has a step.

    Raises:
        DiagError: the file is missing or says none.
    """
    file = Path(folder) / TRAINER_STATE_NAME
    try:
        state = parse_json(file.read_text(encoding="utf-8"))
        int(state["global_step"])
    except FileNotFoundError as error:
        raise DiagError("the checkpoint was not written to its end", where=file, got="no file", hint=_MEND) from error
    except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DiagError("the checkpoint does not say its step", where=file, got=error, hint=_MEND) from error
    return dict(state)


def _check_files(folder: Path, fresh_optimizer: bool) -> None:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        for path in _files(folder):
            name = path.relative_to(folder).as_posix()
            if not (fresh_optimizer and _is_state(name)):
                _check_readable(path, _FRESH if _is_state(name) else _MEND)
        return
    files = read_json(manifest, _MEND)["files"]
    wanted = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    for name, (size, digest) in wanted.items():
        path, hint = folder / name, _FRESH if _is_state(name) else _MEND
        if fresh_optimizer and _is_state(name):
            continue
        if not path.is_file():
            raise DiagError("a file of the checkpoint is missing", where=path, hint=hint)
        if path.stat().st_size != size:
            got = f"{path.stat().st_size} bytes"
            raise DiagError("a file of the checkpoint is cut", where=path, got=got, expected=f"{size} bytes", hint=hint)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise DiagError(
                    "a file of the checkpoint is damaged", where=path, got="other bytes than were written", hint=hint
                )


def _check_readable(path: Path, hint: str) -> None:
    """A file without a manifest, by what its own format can tell: torch's files are zip archives with checksums."""
    if path.suffix in (".pt", ".pth", ".bin", ".npz"):
        try:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            if path.suffix != ".npz" and _begins_with(path, _LEGACY):
                hint = f"torch.save(torch.load(FILE), FILE) writes it anew; or {hint}"
                raise DiagError(
                    "a file of the checkpoint holds no checksum", where=path, got="torch's form of before 1.6",
                    expected="a zip archive", hint=hint,
                ) from error  # fmt: skip
            raise DiagError("a file of the checkpoint cannot be read", where=path, got=error, hint=hint) from error
        if bad is not None:
            raise DiagError("a file of the checkpoint is damaged", where=path, got=f"part {bad}", hint=hint)


def _begins_with(path: Path, begin: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(begin)) == begin
    except OSError:
        return False


def _check_finite(path: Path) -> None:
    """Each weight is a number; piece by piece, so that a large tensor needs little memory."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                flat = file.get_tensor(name).reshape(-1)
                # A mask that is kept with the weights may hold -inf; a training that diverged leaves NaN.
                pieces = (p.float() for p in flat.split(_PIECE)) if flat.is_floating_point() else ()
                if any((p.isnan() | p.isposinf()).any() for p in pieces):
                    raise DiagError("a weight is not finite", where=path, got=name, hint=_MEND)
    except (OSError, SafetensorError) as error:
        raise DiagError("a file of the checkpoint cannot be read", where=path, got=error, hint=_MEND) from error
