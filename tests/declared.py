"""What every written run must hold of its run.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dpo_diag import Run
from dpo_diag.records.run_info import declared_fields
from dpo_diag.records.schemas import TABLES

FIELDS = {f.name: f.type for f in declared_fields()}


def _undeclared(document: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in document.items():
        name = f"{prefix}{key}"
        if name not in FIELDS:
            yield name
        elif any(field.startswith(f"{name}.") for field in FIELDS):
            records = value.values() if name == "splits" else value if isinstance(value, list) else [value]
            for record in records:
                yield from _undeclared(record, f"{name}.")


def assert_declared(run: Run) -> None:
    """Every key of run.json is declared, every split of the records has its role there."""
    assert list(_undeclared(run.meta)) == []
    assert "other" not in run.meta
    assert (run.info.schema_version, run.info.kind) == (run.meta["schema_version"], run.kind)
    splits = {s for name, t in TABLES.items() if "split" in t.names for s in run.read(name, ["split"])["split"]}
    assert splits <= set(run.info.splits)
