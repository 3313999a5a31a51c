"""`pair_id` from the dataset to the batch: a small integer column that the collator never sees.

The id is taken while the texts still exist (`add_pair_ids`, before TRL tokenises; `attach_ids` where there are images,
which TRL prepares batch by batch), rides as one int64 tensor behind the batch's own keys and is taken out again before
the model is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from trl.data_utils import extract_prompt

from dpo_diag.records.given_ids import GivenIds
from dpo_diag.records.pair_id import make_pair_id, pair_id_of
from dpo_diag.records.schemas import SIDES

KEY = "_dpo_diag_ids"
"""Name of the column and of the batch's entry: per pair (id, row in the data set or -1, full lengths or -1)."""
_UNKNOWN = 0


def pack_id(pair_id: str) -> int:
    """16 hex digits as a signed 64-bit integer."""
    value = int(pair_id, 16)
    return value - (1 << 64) if value >= 1 << 63 else value


def unpack_id(value: int) -> str:
    """The inverse of `pack_id`."""
    return format(int(value) & ((1 << 64) - 1), "016x")


def _own_id(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 16 and all(c in "0123456789abcdef" for c in value)


def id_of(example: Mapping[str, Any]) -> int:
    """Packed id of one example: its own `pair_id` if that is one of ours, else its texts' hash; 0 if it has none."""
    if _own_id(example.get("pair_id")):
        return pack_id(example["pair_id"])
    try:
        return pack_id(pair_id_of(with_prompt(example)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return _UNKNOWN  # the trainer reports what is wrong with this example


def with_prompt(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The example with its prompt apart, where chosen and rejected hold it."""
    return example if "prompt" in example else {**example, **extract_prompt(dict(example))}


def _map_row(example: dict[str, Any], index: int, own: Mapping[int, str]) -> dict[str, list[int]]:
    return {KEY: [pack_id(own[index]) if index in own else id_of(example), index]}


def _stream_row(example: dict[str, Any]) -> dict[str, list[int]]:
    # A stream's running number differs between processes and workers, so it identifies nothing; and whether the ids
    # that it brings are each one pair's shows only at its end.
    return {KEY: [id_of({k: v for k, v in example.items() if k != "pair_id"}), -1]}


def _told_apart(dataset: Dataset, given: GivenIds) -> dict[int, str]:
    """Row -> id, of the rows whose id the data set brings for several rows."""
    if "pair_id" not in dataset.column_names:
        return {}
    ids = dataset["pair_id"][:]
    repeated = {i for i, n in Counter(ids).items() if n > 1 and _own_id(i)}
    with suppress(KeyError, TypeError, ValueError, AttributeError):  # the trainer reports what is wrong with them
        return {i: given.own(ids[i], with_prompt(dataset[i])) for i in range(len(ids)) if ids[i] in repeated}
    return {}


def add_pair_ids(dataset: Any, num_proc: int | None = None, name: str = "", given: GivenIds | None = None) -> Any:
    """The dataset with the id column, for Dataset and IterableDataset; anything else, or one that has it, unchanged.

    Args:
        name: of the set, for the progress bar.
        given: hears of ids that the data set brings and that stand for several pairs.
    """
    first = next(iter(dataset), None)
    if not isinstance(first, Mapping) or KEY in first or not {"chosen", "rejected"} <= set(first):
        return dataset
    if isinstance(dataset, Dataset):
        own = _told_apart(dataset, GivenIds() if given is None else given)
        return dataset.map(
            _map_row, with_indices=True, fn_kwargs={"own": own}, num_proc=num_proc,
            desc=f"Identifying pairs of {name} dataset",
        )  # fmt: skip
    return dataset.map(_stream_row)


def _length(ids: Any) -> int:
    return len(ids) if isinstance(ids, (list, tuple)) or torch.is_tensor(ids) else -1


def attach_ids(batch: MutableMapping[str, Any], examples: list[Mapping[str, Any]]) -> None:
    """Lay the ids behind a batch's own keys (see `carrying.CarryingCollator`): int64 (pairs, 4) of id, row, lengths.

    Examples with images come as the user gave them, without an id, and get it here. Where there is neither an id nor
    what one is made of, or the collator gave something else than two rows per example, there is nothing to lay.
    """
    if len(batch["input_ids"]) != 2 * len(examples):
        return
    if all(KEY in e for e in examples):
        own = [e[KEY][:2] for e in examples]
    elif all({"prompt", "chosen", "rejected"} <= set(e) and "chosen_ids" not in e for e in examples):
        own = [[id_of(e), -1] for e in examples]
    else:
        return
    lengths = [[_length(e.get(f"{side}_ids")) for side in SIDES] for e in examples]
    batch[KEY] = torch.tensor([[*o, *n] for o, n in zip(own, lengths, strict=True)], dtype=torch.int64)


def ids_from_tokens(
    input_ids: npt.NDArray[Any],
    attention: npt.NDArray[Any],
    completion: npt.NDArray[Any],
    beside: Mapping[str, npt.NDArray[Any]] | None = None,
) -> list[str]:
    """Ids of a batch whose examples carried none: hashes of what the model saw.

    Args:
        input_ids, attention, completion: shape (2 x pairs, length); first all chosen rows, then all rejected rows.
        beside: what else the model was given, such as pixels. An array of 2 x pairs entries belongs to the rows one by
            one; of any other, which may hold several images a row, the whole and the pair's place count.
    """
    pairs = len(input_ids) // 2
    response, context = completion.astype(bool), attention.astype(bool)
    pair_ids = []
    for i in range(pairs):
        j = i + pairs
        prompt = input_ids[i][context[i] & ~response[i]]
        chosen, rejected = input_ids[i][response[i]], input_ids[j][response[j]]
        images = {k: v[i] if len(v) == 2 * pairs else [v, i] for k, v in (beside or {}).items()}
        pair_ids.append(make_pair_id(prompt.tolist(), chosen.tolist(), rejected.tolist(), images=images))
    return pair_ids


def decode_ids(packed: npt.NDArray[np.int64]) -> tuple[list[str] | None, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(pair ids or None if any is unknown, dataset rows (pairs,), full response lengths (2, pairs), -1 = unknown)."""
    known = bool((packed[:, 0] != _UNKNOWN).all())
    pair_ids = [unpack_id(v) for v in packed[:, 0]] if known else None
    full = packed[:, 2:4].T if packed.shape[1] >= 4 else np.full((2, len(packed)), -1, dtype=np.int64)
    return pair_ids, packed[:, 1], full
