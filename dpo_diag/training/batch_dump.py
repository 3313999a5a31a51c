"""The batch of a step that went wrong, as the model was given it, in the run's alerts/: what `replay` computes again.

Beside it the weights of that step, of what trains, where they are small: then a replay is the step itself. Else it
takes the nearest earlier checkpoint, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dpo_diag.documents import read_json
from dpo_diag.errors import DiagError
from dpo_diag.records.files import replacing, write_json
from dpo_diag.records.kept_steps import FILE

WEIGHTS = "weights.safetensors"
_BATCH = "batch.r{rank}.safetensors"


def dump_batch(
    folder: Path, samples: Sequence[Mapping[str, Any]], *, rank: int, facts: Mapping[str, Any] | None,
    weights: Mapping[str, torch.Tensor] | None,
) -> None:  # fmt: skip
    """Write this process's micro-batches of a step; the main one adds the facts, last, and the weights.

    Args:
        samples: micro-batches as the trainer's loss takes them; what is no tensor is left out.
        facts: of the step, for `read_dump`; None on other processes.
        weights: parameter name -> values before the update; None: they are too large.
    """
    tensors = {
        f"{i}/{name}": values.detach().cpu().contiguous()
        for i, sample in enumerate(samples) for name, values in sample.items() if torch.is_tensor(values)
    }  # fmt: skip
    _save(folder / _BATCH.format(rank=rank), tensors)
    if weights is not None:
        _save(folder / WEIGHTS, {name: values.detach().cpu().contiguous() for name, values in weights.items()})
    if facts is not None:
        write_json(folder / FILE, {**facts, "has_weights": weights is not None})


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # which is what a full disk becomes
            raise OSError(str(error)) from error


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DiagError("a kept batch cannot be read", where=path, got=error) from error


def read_dump(folder: Path) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """The facts of a step, and its micro-batches, of all processes in their order.

    Raises:
        DiagError: the folder holds no batch, or one that was not written to its end.
    """
    file = folder / FILE
    if not file.is_file():
        found = sorted(str(path.parent) for path in (*folder.glob(f"*/{FILE}"), *folder.glob(f"alerts/*/{FILE}")))
        raise DiagError(
            "no batch to replay", where=folder, got=f"no {FILE}", expected="RUN/alerts/step-N of a guard's alert",
            hint=f"name one of {', '.join(found[:5])}" if found else None, usage=True,
        )  # fmt: skip
    facts = dict(read_json(file, "the step's description"))
    for name, known in {"step": int, "processes": int, "codes": list, "loss": str}.items():
        if not isinstance(facts.get(name), known):
            raise DiagError(
                "the step's description is damaged", where=file, got=f"{name}: {facts.get(name)!r}"[:80],
                expected=f"{name} as {known.__name__}",
            )  # fmt: skip
    samples: list[dict[str, torch.Tensor]] = []
    for rank in range(int(facts["processes"])):
        path = folder / _BATCH.format(rank=rank)
        if not path.is_file():
            raise DiagError("the batch of a process is missing", where=path, hint="it lies on another machine's disk")
        of_rank: dict[int, dict[str, torch.Tensor]] = {}
        for name, values in _load(path).items():
            i, _, key = name.partition("/")
            of_rank.setdefault(int(i), {})[key] = values
        samples += [of_rank[i] for i in sorted(of_rank)]
    return facts, samples


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Parameter name -> values before the step's update.

    Raises:
        DiagError: they cannot be read.
    """
    return _load(folder / WEIGHTS)
