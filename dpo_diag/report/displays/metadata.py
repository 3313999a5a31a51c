"""What the run was: run.json as a table, and what the live guards said."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from dpo_diag.records import Run
from dpo_diag.records.secrets import without_secrets
from dpo_diag.report.numbers import number
from dpo_diag.report.tables import table
from dpo_diag.report.text import clean


def metadata_frame(run: Run) -> pd.DataFrame:
    """run.json flattened to dotted keys: field, value (text); secrets stay out even if a writer let one in."""
    rows: list[tuple[str, str]] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, list):
            rows.append((prefix, clean(", ".join(str(v) for v in value), 400) or "none"))
        elif value not in (None, {}, ""):
            rows.append((prefix, clean(value, 400) if isinstance(value, str) else number(value, 6)))

    walk("", without_secrets(run.meta))
    return pd.DataFrame(rows, columns=["field", "value"])


def draw_metadata(frame: pd.DataFrame, alerts: pd.DataFrame) -> Markup:
    """The table, and the alerts where there are any."""
    said = table(alerts[["step", "code", "message"]], "what the live guards said") if len(alerts) else Markup("")
    return said + table(frame, "run.json")
