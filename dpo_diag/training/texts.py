"""Texts of pairs by their id, looked up in the data sets as the user gave them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from datasets import Dataset
from trl.data_utils import extract_prompt

from dpo_diag.records.pair_id import texts_of
from dpo_diag.training.pair_ids import KEY, pack_id


class TextSource:
    """Finds the texts of pairs in map-style data sets (a stream cannot be asked twice)."""

    def __init__(self) -> None:
        self._datasets: list[tuple[Any, np.ndarray | None, np.ndarray | None]] = []

    def add(self, dataset: Any) -> None:
        """Remember a data set that carries the id column; it is read when a text is asked for."""
        if isinstance(dataset, Dataset) and {KEY, "chosen", "rejected"} <= set(dataset.column_names):
            self._datasets.append((dataset, None, None))

    def lookup(self, pair_ids: Iterable[str]) -> list[dict[str, Any]]:
        """Rows of the texts table (without split) for those pairs that a data set holds."""
        wanted = list(dict.fromkeys(pair_ids))
        rows: list[dict[str, Any]] = []
        for d, (dataset, ids, order) in enumerate(self._datasets):
            if not wanted:
                break
            if ids is None or order is None:
                packed = np.asarray(dataset.select_columns([KEY]).with_format("numpy")[:][KEY]).reshape(-1, 2)[:, 0]
                order = np.argsort(packed, kind="stable")
                ids = packed[order]
                self._datasets[d] = (dataset, ids, order)
            missing = []
            for pair_id in wanted:
                at = int(np.searchsorted(ids, pack_id(pair_id)))
                if at == len(ids) or ids[at] != pack_id(pair_id):
                    missing.append(pair_id)
                    continue
                example = dict(dataset[int(order[at])])
                if "prompt" not in example:
                    example |= extract_prompt(example)
                rows.append({"pair_id": pair_id, **texts_of(example)})
            wanted = missing
        return rows
