"""A checkpoint's tensors as numpy arrays, one at a time, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from dpo_diag.documents import parse_json, read_json
from dpo_diag.errors import DiagError

FloatArray = npt.NDArray[np.float32]


class Weights(Mapping[str, FloatArray]):
    """The tensors of a checkpoint folder (or of one file) by name, read when asked for, as float32.

    Args:
        path: a folder with model.safetensors, its shards, or adapter_model.safetensors; or a .safetensors file.

    Raises:
        DiagError: no such folder, no safetensors in it (pickles are not opened), a broken file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise DiagError("no such checkpoint", where=path, hint="name a folder with .safetensors files")
        self._files: dict[str, tuple[Path, Any]] = {}
        for file in [self.path] if self.path.is_file() else _files_of(self.path):
            try:
                handle: Any = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise DiagError(
                    "not a whole safetensors file", where=file, got=error, hint="save or download it again"
                ) from error
            self._files |= dict.fromkeys(handle.keys(), (file, handle))

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[name][1].get_slice(name).get_shape())

    def __getitem__(self, name: str) -> FloatArray:
        file, handle = self._files[name]
        kind = handle.get_slice(name).get_dtype()
        if kind == "BF16":
            return _bfloat16(file, name).reshape(self.shape(name))
        try:
            return np.asarray(handle.get_tensor(name), dtype=np.float32)
        except (TypeError, AttributeError):
            raise DiagError(
                "a tensor of a type that is not read", where=f"{file}, {name}", got=kind,
                expected="a type of numpy, or bfloat16", hint="compare unquantised checkpoints",
            ) from None  # fmt: skip


def _files_of(folder: Path) -> list[Path]:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names = sorted(map(str, set(read_json(index, "the shard index")["weight_map"].values())))
        except (KeyError, AttributeError, TypeError) as error:
            raise DiagError("the shard index cannot be read", where=index, got=error) from error
        # Names come from a file that someone else wrote: they may not lead out of the folder.
        files = [folder / Path(name).name for name in names]
        absent = [f.name for f in files if not f.is_file()]
        if absent:
            raise DiagError("a shard is missing", where=folder, got=absent[0], hint="download it again")
        return files
    files = [folder / n for n in ("model.safetensors", "adapter_model.safetensors")]
    files = [f for f in files if f.is_file()] or sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        raise DiagError(
            "no .safetensors file", where=folder, got="pickled weights only" if pickled else "none",
            hint="save it with safe_serialization" if pickled else "name a checkpoint folder",
        )  # fmt: skip
    return files


def _bfloat16(file: Path, name: str) -> FloatArray:
    """A bfloat16 tensor, flat: numpy has no such type, and safetensors 0.8 gives none without the package ml_dtypes."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        begin, end = parse_json(handle.read(length))[name]["data_offsets"]  # checked by safe_open before
    upper = np.fromfile(file, dtype="<u2", count=(end - begin) // 2, offset=8 + length + begin)
    # bfloat16 is the upper half of a float32.
    return (upper.astype("<u4") << 16).view("<f4")
