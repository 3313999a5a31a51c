"""What training did to the weights, without running the model: how far each layer moved, and in how many directions.

Effective rank is exp(entropy of the normalised singular values) (Roy & Vetterli 2007, EUSIPCO, "The effective rank"):
1 for a change in one direction, r for a LoRA update that uses all its r directions alike.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.models.weight_files import Weights

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block)\.(\d+)\.")
_LORA = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.weight|\.default\.weight|\.default)?$")
_SAVED = re.compile(r"^(?:base_model\.model\.)?(.+?)(?:\.modules_to_save(?:\.default)?)?(\.weight|\.bias)$")
COLUMNS = ["tensor", "layer", "kind", "shape", "norm", "change", "relative", "effective_rank", "max_rank", "top_share"]


@dataclass(frozen=True)
class _Update:
    """A low-rank update as factors: delta = left @ right, (out, k) @ (k, in)."""

    left: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]

    def singular_values(self) -> npt.NDArray[np.float64]:
        """Of left @ right, from two small QR factors: the full matrix is never built."""
        small = np.linalg.qr(self.left, mode="r") @ np.linalg.qr(self.right.T, mode="r").T
        return np.linalg.svd(small, compute_uv=False)


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
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DiagError("adapter_config.json cannot be read", where=file, got=error) from error
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise DiagError("only LoRA adapters can be compared", where=file, got=config.get("peft_type"))
    return dict(config)


def _patterned(patterns: Any, module: str, default: float) -> float:
    """PEFT's rank_pattern and alpha_pattern: a key matches a module by its end, as a regular expression."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return default


def _updates(path: Path, weights: Weights, config: dict[str, Any]) -> tuple[dict[str, _Update], dict[str, str]]:
    """weight name -> its low-rank update; and weight name -> tensor name of what is saved whole."""
    factors: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    whole: dict[str, str] = {}
    for name in weights:
        match = _LORA.match(name)
        if match:
            factors.setdefault(match.group(1), {})[match.group(3)] = weights[name].astype(np.float64)
            continue
        if "lora_magnitude" in name:
            raise DiagError("DoRA adapters rescale weights and cannot be compared", where=path, hint="merge it first")
        saved = _SAVED.match(name)
        if saved:
            whole[saved.group(1) + saved.group(2)] = name
    updates = {}
    for module, pair in factors.items():
        if set(pair) != {"A", "B"}:
            raise DiagError("half of a LoRA pair is missing", where=path, got=module)
        a, b = pair["A"], pair["B"]
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        rank = a.shape[0]
        alpha = _patterned(config.get("alpha_pattern"), module, float(config.get("lora_alpha") or rank))
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        updates[module + ".weight"] = _Update(b * scale, a)
    return updates, whole


def _rows_of_matrix(delta: npt.NDArray[np.float64], ranks: bool) -> tuple[float, float, float, int]:
    """(norm, effective rank, top share, largest possible rank) of a change."""
    norm = float(np.linalg.norm(delta))
    matrix = delta.reshape(delta.shape[0], -1) if delta.ndim > 1 else None
    if matrix is None or min(matrix.shape) < 2:
        return norm, math.nan, math.nan, 1
    if not ranks:
        return norm, math.nan, math.nan, min(matrix.shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    return norm, effective_rank(values), _top(values), min(matrix.shape)


def _top(values: npt.NDArray[np.float64]) -> float:
    total = float((values**2).sum())
    return float(values.max() ** 2) / total if total > 0 else math.nan


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
    path_a, path_b = Path(a), Path(b)
    weights_a, weights_b = Weights(path_a), Weights(path_b)
    config_a, config_b = _adapter_config(path_a), _adapter_config(path_b)
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    only_a: list[str] = []
    only_b: list[str] = []
    other: list[str] = []
    if config_a is None and config_b is None:
        only_a, only_b = sorted(set(weights_a) - set(weights_b)), sorted(set(weights_b) - set(weights_a))
        for name in sorted(set(weights_a) & set(weights_b)):
            if weights_a.shape(name) != weights_b.shape(name):
                other.append(name)
                continue
            rows.append(_full_row(name, weights_a[name], weights_b[name], ranks))
    elif config_b is None:
        raise DiagError(
            "an adapter before a full model cannot be compared",
            where=f"{a}, {b}",
            hint="swap them, or merge the adapter",
        )
    else:
        updates_b, whole_b = _updates(path_b, weights_b, config_b)
        if config_a is None:
            updates_a: dict[str, _Update] = {}
            base: Weights | None = weights_a
        else:
            updates_a, whole_a = _updates(path_a, weights_a, config_a)
            base = _local_base(config_b, notes)
            only_a = sorted(set(updates_a) - set(updates_b))
            for name in sorted(set(whole_a) & set(whole_b)):
                rows.append(_full_row(name, weights_a[whole_a[name]], weights_b[whole_b[name]], ranks))
        for name, update in sorted(updates_b.items()):
            before = updates_a.get(name)
            if before is not None:
                update = _Update(np.hstack([update.left, -before.left]), np.vstack([update.right, before.right]))
            values = update.singular_values()
            known = _in_base(base, name)
            if config_a is None and known is None:
                only_b.append(name)
                continue
            norm = float(np.linalg.norm(base[known].astype(np.float64))) if base is not None and known else math.nan
            rows.append(
                _row(name, (update.left.shape[0], update.right.shape[1]), norm, float(np.sqrt((values**2).sum())),
                     effective_rank(values), _top(values), min(len(values), *update.left.shape, *update.right.shape))
            )  # fmt: skip
        if config_a is None:
            for name, tensor in sorted(whole_b.items()):
                known = _in_base(weights_a, name)
                if known is None or weights_a.shape(known) != weights_b.shape(tensor):
                    (only_b if known is None else other).append(name)
                else:
                    rows.append(_full_row(name, weights_a[known], weights_b[tensor], ranks))
    if not rows:
        names = " and ".join(str(next(iter(w), "nothing")) for w in (weights_a, weights_b))
        raise DiagError("the checkpoints have no weight in common", where=f"{a}, {b}", got=f"e.g. {names}")
    tensors = pd.DataFrame(rows, columns=COLUMNS)
    return WeightChange(tensors, _by_layer(tensors), only_a, only_b, other, notes)


def _local_base(config: dict[str, Any], notes: list[str]) -> Weights | None:
    name = str(config.get("base_model_name_or_path") or "")
    if name and Path(name).is_dir():
        return Weights(name)
    notes.append(f"the base model {name or '(unnamed)'} is no local folder: relative norms are unknown")
    return None


def _in_base(base: Weights | None, name: str) -> str | None:
    """The name of a weight in the base checkpoint, whose wrapper may have dropped or added a `model.` in front."""
    if base is None:
        return None
    for candidate in (name, f"model.{name}", name.removeprefix("model."), name.removeprefix("transformer.")):
        if candidate in base:
            return candidate
    return None


def _full_row(name: str, before: npt.ArrayLike, after: npt.ArrayLike, ranks: bool | None) -> dict[str, Any]:
    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    delta = y - x
    wanted = ranks if ranks is not None else delta.ndim > 1 and min(delta.shape[0], delta[0].size) <= 1024
    change, rank, top, most = _rows_of_matrix(delta, bool(wanted))
    return _row(name, x.shape, float(np.linalg.norm(x)), change, rank, top, most)


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
    grouped = squared.groupby("layer")
    out = pd.DataFrame(
        {
            "norm": np.sqrt(grouped["norm"].sum(min_count=1)),
            "change": np.sqrt(grouped["change"].sum()),
            "effective_rank": tensors.groupby("layer")["effective_rank"].mean(),
            "n": grouped.size(),
        }
    )
    out["relative"] = out["change"] / out["norm"]
    return out.reset_index()[["layer", "n", "norm", "change", "relative", "effective_rank"]]
