"""Sources that hold one list per metric (TensorBoard, H2O charts): their points gathered into rows by step."""

from __future__ import annotations

from typing import Any

from dpo_diag.importers.rows import RowStore


class RowsByStep:
    """Points (step, key, value) to rows; a key that a step holds already starts a second row of that step."""

    def __init__(self, store: RowStore) -> None:
        self._store = store
        self._rows: dict[int, dict[str, Any]] = {}

    def add(self, step: int, key: str, value: Any) -> None:
        row = self._rows.setdefault(step, {})
        if key in row:
            self._store.add(row, 0, step)
            row = self._rows[step] = {}
        row[key] = value

    def finish(self) -> None:
        """Hand all rows to the store, in step order."""
        for step in sorted(self._rows):
            self._store.add(self._rows[step], 0, step)
        self._rows = {}
