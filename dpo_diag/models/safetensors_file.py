"""Reading safetensors with numpy alone: bfloat16 too, one tensor at a time, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_diag.errors import DiagError

FloatArray = npt.NDArray[np.float32]
_DTYPES: dict[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U8": "<u1", "BOOL": "?",
}  # fmt: skip
MAX_HEADER = 100 * 2**20


@dataclass(frozen=True)
class _Entry:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


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
        files = [self.path] if self.path.is_file() else self._files()
        self._entries: dict[str, _Entry] = {}
        for file in files:
            self._entries.update(_header(file))

    def _files(self) -> list[Path]:
        for index in sorted(self.path.glob("*.safetensors.index.json")):
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise DiagError("the shard index cannot be read", where=index, got=error) from error
            # Names come from a file that someone else wrote: they may not lead out of the folder.
            files = [self.path / Path(str(name)).name for name in names]
            absent = [f.name for f in files if not f.is_file()]
            if absent:
                raise DiagError("a shard is missing", where=self.path, got=absent[0], hint="download it again")
            return files
        files = [self.path / n for n in ("model.safetensors", "adapter_model.safetensors")]
        files = [f for f in files if f.is_file()] or sorted(self.path.glob("*.safetensors"))
        if not files:
            pickled = any(self.path.glob("*.bin")) or any(self.path.glob("*.pt"))
            raise DiagError(
                "no .safetensors file", where=self.path, got="pickled weights only" if pickled else "none",
                hint="save it with safe_serialization" if pickled else "name a checkpoint folder",
            )  # fmt: skip
        return files

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self._entries[name].shape

    def __getitem__(self, name: str) -> FloatArray:
        entry = self._entries[name]
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise DiagError(
                "a tensor of a type that is not read", where=f"{entry.file}, {name}", got=entry.dtype,
                expected=", ".join(_DTYPES), hint="compare unquantised checkpoints",
            )  # fmt: skip
        raw = np.fromfile(entry.file, dtype="<u1", count=entry.end - entry.start, offset=entry.start)
        values = raw.view(dtype)
        if entry.dtype == "BF16":
            # bfloat16 is the upper half of a float32.
            values = (values.astype("<u4") << 16).view("<f4")
        array: FloatArray = values.astype(np.float32).reshape(entry.shape)
        return array


def _header(file: Path) -> dict[str, _Entry]:
    """name -> where it lies, checked against the file's size."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise ValueError("its header is longer than the file")
            document: dict[str, Any] = json.loads(handle.read(length))
        entries = {}
        for name, value in document.items():
            if name == "__metadata__":
                continue
            begin, end = (int(x) for x in value["data_offsets"])
            shape = tuple(int(x) for x in value["shape"])
            dtype = str(value["dtype"])
            if not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"tensor {name} lies outside of the file")
            if dtype in _DTYPES and end - begin != np.dtype(_DTYPES[dtype]).itemsize * math.prod(shape):
                raise ValueError(f"tensor {name} has another size than its shape")
            entries[name] = _Entry(file, dtype, shape, 8 + length + begin, 8 + length + end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DiagError(
            "not a whole safetensors file", where=file, got=error, hint="save or download it again"
        ) from error
    return entries
