"""What training did to the weights, without running the model: how far each layer moved, and in how many directions.

Effective rank is exp(entropy of the normalised singular values) (Roy & Vetterli 2007, EUSIPCO, "The effective rank"):
1 for a change in one direction, r for a LoRA update that uses all its r directions alike.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.documents import read_json
from dpo_diag.errors import DiagError
from dpo_diag.models.weight_files import Weights

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)\.")
_LORA = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.weight|\.default\.weight|\.default)?$")
_SAVED = re.compile(r"^(?:base_model\.model\.)?(.+?)(?:\.modules_to_save(?:\.default)?)?(\.weight|\.bias)$")
SMALL_MATRIX = 1024
"""Short side up to which a full weight's change is decomposed unasked: under a second each."""
FloatArray = npt.NDArray[np.float64]
COLUMNS = ["tensor", "layer", "kind", "shape", "norm", "change", "relative", "effective_rank", "max_rank", "top_share"]


@dataclass(frozen=True)
class _Update:
    """A low-rank update as factors: delta = left @ right, (out, k) @ (k, in)."""

    left: FloatArray
    right: FloatArray

    def minus(self, other: _Update | None) -> _Update:
        """The difference of two updates, again as factors."""
        if other is None:
            return self
        return _Update(np.hstack([self.left, -other.left]), np.vstack([self.right, other.right]))

    def singular_values(self) -> FloatArray:
        """Of left @ right, from two small QR factors: the full matrix is never built."""
        _, r_left = np.linalg.qr(self.left)
        _, r_right = np.linalg.qr(self.right.T)
        return np.asarray(np.linalg.svd(r_left @ r_right.T, compute_uv=False), dtype=np.float64)


@dataclass(frozen=True)
class WeightChange:
    """Comparison of two checkpoints.

    Attributes:
        tensors: one row per weight that is in both (columns `COLUMNS`): layer (-1 outside of the layers), kind (name
            without layer number), norm (Frobenius, of A's weight), change (norm of B - A), relative (their ratio),
            effective_rank and top_share (share of the squared change along its first direction) of the change, NaN
            where not computed; max_rank: the most that the change could have (r for LoRA).
        layers: the same summed per layer: layer, norm, change, relative, n.
        only_a, only_b, other_shape: names of tensors that could not be compared.
        notes: what a reader must know.
    """

    tensors: pd.DataFrame
    layers: pd.DataFrame
    only_a: list[str]
    only_b: list[str]
    other_shape: list[str]
    notes: list[str]


def effective_rank(singular_values: npt.ArrayLike) -> float:
    """exp(entropy of the singular values normalised to sum 1); 0 for no change.

    >>> round(effective_rank([1.0, 1.0, 0.0]), 6), effective_rank([3.0])
    (2.0, 1.0)
    """
    s = np.asarray(singular_values, dtype=np.float64)
    s = s[s > 0]
    if s.size == 0:
        return 0.0
    p = s / s.sum()
    return math.exp(float(-(p * np.log(p)).sum()))


def _adapter_config(path: Path) -> dict[str, Any] | None:
    file = path / "adapter_config.json"
    if not file.is_file():
        return None
    config = read_json(file, "adapter_config.json")
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise DiagError("only LoRA adapters can be compared", where=file, got=config.get("peft_type"))
    return dict(config)


def _patterned(patterns: Any, module: str, default: float) -> float:
    """PEFT's rank_pattern and alpha_pattern: a key matches a module by its end, as a regular expression."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return default


@dataclass(frozen=True)
class _Side:
    """One of the two checkpoints: what it saves as low-rank updates, and weight name -> tensor saved whole."""

    weights: Weights
    config: dict[str, Any] | None
    updates: dict[str, _Update]
    whole: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> _Side:
        weights, config = Weights(path), _adapter_config(path)
        if config is None:
            return cls(weights, None, {}, {name: name for name in weights})
        factors: dict[str, dict[str, FloatArray]] = {}
        whole: dict[str, str] = {}
        for name in weights:
            if match := _LORA.match(name):
                factors.setdefault(match.group(1), {})[match.group(3)] = weights[name].astype(np.float64)
            elif "lora_magnitude" in name:
                raise DiagError(
                    "DoRA adapters rescale weights and cannot be compared", where=path, hint="merge it first"
                )
            elif saved := _SAVED.match(name):
                whole[saved.group(1) + saved.group(2)] = name
        updates = {f"{module}.weight": _lora_update(path, module, pair, config) for module, pair in factors.items()}
        return cls(weights, config, updates, whole)


def _lora_update(path: Path, module: str, pair: dict[str, FloatArray], config: dict[str, Any]) -> _Update:
    """scale * B @ A with PEFT's scale: alpha / r, or alpha / sqrt r (rsLoRA)."""
    if set(pair) != {"A", "B"}:
        raise DiagError("half of a LoRA pair is missing", where=path, got=module)
    a, b = (factor.reshape(factor.shape[0], -1) for factor in (pair["A"], pair["B"]))
    rank = a.shape[0]
    alpha = _patterned(config.get("alpha_pattern"), module, float(config.get("lora_alpha") or rank))
    return _Update(b * (alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank), a)


def compare_weights(a: str | Path, b: str | Path, *, ranks: bool | None = None) -> WeightChange:
    """Compare two checkpoints: full with full, a base with an adapter on it, or adapter with adapter.

    Args:
        a: the earlier one: a folder or .safetensors file.
        b: the later one.
        ranks: also the effective rank of full weights' changes, a singular value decomposition each (seconds to
            minutes for large models). None: for LoRA always (cheap), for full weights up to 1024 on the short side.

    Raises:
        DiagError: not a checkpoint, nothing in common, an adapter that is not LoRA.
    """
    before, after = _Side.read(Path(a)), _Side.read(Path(b))
    if before.config is not None and after.config is None:
        raise DiagError(
            "an adapter before a full model cannot be compared", where=f"{a}, {b}",
            hint="swap them, or merge the adapter",
        )  # fmt: skip
    on_base = before.config is None and after.config is not None
    notes: list[str] = []
    base = before.weights if after.config is None or on_base else _local_base(after.config, notes)
    only_a = [] if on_base else sorted({*before.updates, *before.whole} - {*after.updates, *after.whole})
    only_b: list[str] = []
    other_shape: list[str] = []
    rows: list[dict[str, Any]] = []
    for name, update in sorted(after.updates.items()):
        tensor = _in_base(base, name)
        if on_base and tensor is None:
            only_b.append(name)
        else:
            norm = float(np.linalg.norm(base[tensor].astype(np.float64))) if base is not None and tensor else math.nan
            rows.append(_low_rank_row(name, update.minus(before.updates.get(name)), norm))
    for name, tensor_b in sorted(after.whole.items()):
        tensor_a = _in_base(before.weights, name) if on_base else before.whole.get(name)
        if tensor_a is None:
            only_b.append(name)
        elif before.weights.shape(tensor_a) != after.weights.shape(tensor_b):
            other_shape.append(name)
        else:
            rows.append(_full_row(name, before.weights[tensor_a], after.weights[tensor_b], ranks))
    if not rows:
        names = " and ".join(str(next(iter(side.weights), "nothing")) for side in (before, after))
        raise DiagError("the checkpoints have no weight in common", where=f"{a}, {b}", got=f"e.g. {names}")
    tensors = pd.DataFrame(rows, columns=COLUMNS)
    return WeightChange(tensors, _by_layer(tensors), only_a, only_b, other_shape, notes)


def _local_base(config: dict[str, Any], notes: list[str]) -> Weights | None:
    name = str(config.get("base_model_name_or_path") or "")
    if name and Path(name).is_dir():
        return Weights(name)
    notes.append(f"the base model {name or '(unnamed)'} is not a local folder: relative norms are unknown")
    return None


def _in_base(base: Weights | None, name: str) -> str | None:
    """The name of a weight in the base checkpoint, whose wrapper may have dropped or added a `model.` in front."""
    if base is None:
        return None
    for candidate in (name, f"model.{name}", name.removeprefix("model."), name.removeprefix("transformer.")):
        if candidate in base:
            return candidate
    return None


def _low_rank_row(name: str, update: _Update, norm: float) -> dict[str, Any]:
    values = update.singular_values()
    most = min(len(values), *update.left.shape, *update.right.shape)
    shape = (update.left.shape[0], update.right.shape[1])
    return _row(name, shape, norm, float(np.sqrt((values**2).sum())), effective_rank(values), _top(values), most)


def _full_row(name: str, before: npt.ArrayLike, after: npt.ArrayLike, ranks: bool | None) -> dict[str, Any]:
    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    delta = y - x
    norm, change = float(np.linalg.norm(x)), float(np.linalg.norm(delta))
    matrix = delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else delta.reshape(1, -1)
    most = max(1, min(matrix.shape))
    wanted = ranks if ranks is not None else most <= SMALL_MATRIX
    if most < 2 or not wanted:
        return _row(name, x.shape, norm, change, math.nan, math.nan, most)
    values = np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)
    return _row(name, x.shape, norm, change, effective_rank(values), _top(values), most)


def _top(values: FloatArray) -> float:
    """Share of the squared change along its first direction; NaN for no change."""
    total = float((values**2).sum())
    return float(values.max() ** 2) / total if total > 0 else math.nan


def _row(
    name: str, shape: tuple[int, ...], norm: float, change: float, rank: float, top: float, most: int
) -> dict[str, Any]:
    match = _LAYER.search(name)
    relative = change / norm if norm > 0 else 0.0 if change == 0 else math.nan
    return {
        "tensor": name,
        "layer": int(match.group(1)) if match else -1,
        "kind": name[match.end() :] if match else name,
        "shape": "x".join(map(str, shape)),
        "norm": norm,
        "change": change,
        "relative": relative,
        "effective_rank": rank,
        "max_rank": most,
        "top_share": top,
    }


def _by_layer(tensors: pd.DataFrame) -> pd.DataFrame:
    """Squares add up over a layer's tensors; the layer -1 is everything outside of the layers."""
    squared = tensors.assign(norm=tensors["norm"] ** 2, change=tensors["change"] ** 2)
    grouped = squared.groupby("layer", observed=True)
    out = pd.DataFrame(
        {
            "norm": np.sqrt(grouped["norm"].sum(min_count=1)),
            "change": np.sqrt(grouped["change"].sum()),
            "effective_rank": tensors.groupby("layer", observed=True)["effective_rank"].mean(),
            "n": grouped.size(),
        }
    )
    out["relative"] = out["change"] / out["norm"]
    return out.reset_index()[["layer", "n", "norm", "change", "relative", "effective_rank"]]
