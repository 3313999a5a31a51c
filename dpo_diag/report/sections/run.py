"""What the run was: run.json as a table, and what the live guards said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.records.secrets import without_secrets
from dpo_diag.report.section import SECTIONS, Context, Section
from dpo_diag.report.tables import table
from dpo_diag.report.text import clean
from dpo_diag.text import number

TEMPLATE = """{% if alerts %}{{ ui.table(alerts) }}{% endif %}{{ ui.table(fields) }}"""


def build(context: Context) -> Mapping[str, Any]:
    """run.json flattened to dotted keys, what was trained first; secrets stay out even if a writer let one in."""
    alerts = context.run.alerts
    meta = without_secrets(context.run.meta)
    ordered = {key: meta[key] for key in sorted(meta, key=_place)}
    fields = pd.DataFrame(_flat(ordered), columns=["field", "value"])
    return {
        "alerts": table(alerts[["step", "code", "message"]], "what the live guards said") if len(alerts) else None,
        "fields": table(fields, "run.json"),
    }


_FIRST = ("name", "kind", "status", "loss", "beta", "training", "data", "splits", "model", "reference")
_LAST = ("packages", "git_commit", "created", "ended", "schema_version")


def _place(key: str) -> int:
    """What a reader of a run looks for first: the loss, how it was trained and on what; versions of packages last."""
    if key in _LAST:
        return len(_FIRST) + 1 + _LAST.index(key)
    return _FIRST.index(key) if key in _FIRST else len(_FIRST)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of everything that is not empty."""
    if isinstance(value, dict) and value:
        parts = (_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items())
        return [row for part in parts for row in part]
    if isinstance(value, list):
        return [(prefix, clean(", ".join(map(str, value)), 400) or "none")]
    if value in (None, {}, ""):
        return []
    return [(prefix, clean(value, 400) if isinstance(value, str) else number(value, 6))]


SECTIONS.add("run", Section(
    title="The run", lead="As run.json has it.", order=100, build=build, template=TEMPLATE,
))  # fmt: skip
